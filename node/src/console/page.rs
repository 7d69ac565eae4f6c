//! The page for people: the status document as HTML, rendered by the node, without scripts.
//!
//! The invariant: text that comes from elsewhere (ids, zones, addresses of members) is escaped.

use crate::status::{Member, Status};
use std::fmt::{self, Display, Write};

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;\
    padding:0 1rem;color:#222;background:#fff}table{border-collapse:collapse}\
    th,td{text-align:left;padding:.2rem 1rem .2rem 0;border-bottom:1px solid #ddd}\
    td.n,th.n{text-align:right}.warn{color:#a40000}\
    @media(prefers-color-scheme:dark){body{color:#ddd;background:#111}th,td{border-color:#333}\
    a{color:#8bf}.warn{color:#f88}}";

/// Text that may contain anything.
struct Escaped<'a>(&'a str);

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|character| match character {
            '&' => f.write_str("&amp;"),
            '<' => f.write_str("&lt;"),
            '>' => f.write_str("&gt;"),
            '"' => f.write_str("&quot;"),
            '\'' => f.write_str("&#39;"),
            other => f.write_char(other),
        })
    }
}

/// A whole page; `paths` are listed with what is there.
pub(super) fn render(status: &Status, paths: &[(&str, &str)]) -> String {
    let mut html = String::new();
    // Writing to a string cannot fail.
    let _ = write(&mut html, status, paths);
    html
}

fn write(html: &mut String, status: &Status, paths: &[(&str, &str)]) -> fmt::Result {
    let (id, cluster) = (Escaped(&status.id), Escaped(&status.cluster));
    write!(
        html,
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\">\
         <meta http-equiv=\"refresh\" content=\"5\">\
         <title>{id} · Tracemesh</title><style>{STYLE}</style>\
         <h1>{id}</h1><p>A node of cluster <b>{cluster}</b>: {}, {}.</p>",
        status.state,
        if status.ready { "accepts spans" } else { "does not accept spans" },
    )?;
    if !status.degraded.is_empty() {
        let degraded = status.degraded.join(", ");
        write!(html, "<p class=\"warn\">Degraded: {}</p>", Escaped(&degraded))?;
    }
    let held = status.spans_held;
    write!(
        html,
        "<p>Holds {} spans as owner, {} as replica, {} in another's place, parts of {} traces; \
         uses {} of {} bytes.</p><h2>Members</h2>\
         <p>View {} of {} members.</p><table><tr><th>Id<th>State<th>Address<th>Zone\
         <th class=\"n\">Weight<th class=\"n\">Owns<th class=\"n\">Replica of<th class=\"n\">Full",
        held.owner,
        held.replica,
        held.stand_in,
        status.traces_held,
        status.memory_bytes,
        status.memory_budget_bytes,
        Escaped(&status.view.hash),
        status.view.members,
    )?;
    status.members.iter().try_for_each(|member| row(html, member))?;
    html.push_str("</table><h2>Here</h2><ul>");
    for (path, what) in paths {
        write!(html, "<li><a href=\"{path}\">{path}</a> {what}")?;
    }
    html.push_str("</ul></html>");
    Ok(())
}

fn row(html: &mut String, member: &Member) -> fmt::Result {
    write!(
        html,
        "<tr><td>{}<td>{}<td>{}<td>{}<td class=\"n\">{}<td class=\"n\">{}<td class=\"n\">{}\
         <td class=\"n\">{} %",
        Escaped(&member.id),
        member.state,
        Escaped(&member.mesh_address),
        Escaped(&member.zone),
        member.weight,
        member.owned_slots,
        member.replica_slots,
        member.fill_percent,
    )
}
