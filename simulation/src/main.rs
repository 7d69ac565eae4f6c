//! The simulator as a program.
use tracemesh_simulation::plan::*;
use tracemesh_simulation::*;

#[global_allocator]
static ALLOCATOR: allocator::Counting = allocator::Counting;

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let nodes: usize = args[1].parse()?;
    let secs: u64 = args[2].parse()?;
    let plan = Plan {
        seed: args[3].parse()?,
        nodes,
        spare_nodes: 1,
        safety_ms: Millis(secs * 1000),
        liveness_ms: Millis(60_000),
        cluster: ClusterOptions {
            replicas: 1,
            zones: 0,
            shards: 2,
            memory_bytes: 256 << 20,
            root_delay_ms: Millis(1000),
            age_max_ms: Millis(5000),
            drain_announce_ms: Millis(1000),
            drain_timeout_ms: Millis(20_000),
        },
        link: LinkOptions::GOOD,
        load: LoadOptions {
            clients: nodes,
            requests_per_second: 20.0,
            spans_per_request: 20,
            span_bytes: 500,
            spans_per_trace: 8,
            rootless: 0.0,
            spread_ms: Millis(500),
            deadline_ms: Millis(10_000),
            tries_max: 30,
            repeats: 0.0,
        },
        faults: if args.len() > 4 {
            vec![Timed {
                at_ms: Millis(secs * 500),
                fault: Fault::Crash {
                    node: 1,
                    restart: Some(Restart {
                        after_ms: Millis(5000),
                        generation: Generation::New,
                        data: Data::Kept,
                    }),
                },
            }]
        } else {
            vec![]
        },
    };
    let log = std::env::var_os("EVENTS").map(|p| {
        Box::new(std::io::BufWriter::new(std::fs::File::create(p).unwrap()))
            as Box<dyn std::io::Write + Send>
    });
    if std::env::var_os("LOG").is_some() {
        tracing_subscriber::fmt().without_time().init();
    }
    let t = std::time::Instant::now();
    let out = cluster::run(plan, cluster::Watching { event_log: log, until: None })?;
    let h = &out.history;
    let exports =
        h.entries.iter().filter(|e| matches!(e.what, history::What::Export { .. })).count();
    let spans: usize = h
        .entries
        .iter()
        .map(|e| match &e.what {
            history::What::Export { spans, .. } => spans.len(),
            _ => 0,
        })
        .sum();
    let offered: usize = h
        .entries
        .iter()
        .map(|e| match &e.what {
            history::What::Offered { spans, .. } => spans.len(),
            _ => 0,
        })
        .sum();
    println!(
        "{:016x} {} events; ended at {:?}; offered {offered} exports {exports} spans {spans}; peaks {:?}; {:.1} virtual s per wall s",
        out.hash.0,
        out.hash.1,
        h.ended_at,
        h.memory_peaks,
        h.ended_at.0 as f64 / 1000.0 / t.elapsed().as_secs_f64()
    );
    for e in &h.entries {
        match &e.what {
            history::What::Life { .. } | history::What::View { .. } => {
                println!("{:?} {:?}", e.at, e.what)
            }
            _ => {}
        }
    }
    for (n, l) in &h.last_looks {
        println!(
            "{n} {:?} {:?}",
            l.held,
            l.counters.iter().filter(|c| *c.1 > 0 && c.0.starts_with("spans")).collect::<Vec<_>>()
        );
    }
    Ok(())
}
