//! Ports for nodes under test.
//!
//! A node takes four consecutive ports, and a test must know them before the node runs, because
//! others are told them as seeds. The invariant: no two tests on this machine are given the same
//! ones, in whatever process they run. The kernel owns that state: a block is claimed by a locked
//! file, and the lock ends with the process. A block of which a program outside the tests has a
//! port is passed over.

use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::sync::Mutex;

/// First port of the first block; below the range from which kernels take ports for clients.
const FIRST: u16 = 12_000;
/// Blocks that there are; the last one ends below 32,768.
const BLOCK_COUNT: u16 = 5_000;
/// Ports of one node: OTLP gRPC, OTLP HTTP, mesh (UDP), console.
const PORTS_OF_A_NODE: u16 = 4;

/// Claims of this process, kept until it ends.
static CLAIMED: Mutex<Vec<File>> = Mutex::new(Vec::new());

/// A base port that no other node under test has.
///
/// # Panics
/// When no block is free, or the directory for temporary files cannot be written.
pub fn claim_base_port() -> u16 {
    let directory = std::env::temp_dir().join("tracemesh-test-ports");
    fs::create_dir_all(&directory).expect("the directory for claims can be made");
    let mut claimed = CLAIMED.lock().expect("nothing panics while it claims a port");
    for block in 0..BLOCK_COUNT {
        let base = FIRST + block * PORTS_OF_A_NODE;
        let file = File::create(directory.join(base.to_string())).expect("a claim can be written");
        if file.try_lock().is_err() {
            continue;
        }
        let free = is_free(base);
        claimed.push(file);
        if free {
            return base;
        }
    }
    panic!("no {PORTS_OF_A_NODE} consecutive ports are free from {FIRST} on");
}

fn is_free(base: u16) -> bool {
    let tcp = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
    let udp = |port| UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
    tcp(base) && tcp(base + 1) && udp(base + 2) && tcp(base + 3)
}

#[cfg(test)]
mod tests {
    use super::claim_base_port;

    #[test]
    fn two_claims_are_four_ports_apart() {
        let (one, other) = (claim_base_port(), claim_base_port());
        assert!(one.abs_diff(other) >= 4, "{one} and {other}");
    }
}
