//! What is needed to do it again.

use std::fmt::Write;

use anyhow::Context;

use super::{Report, escape};
use crate::trainer::export::revision;

/// Writes the section.
pub fn write(html: &mut String, report: &Report<'_>) -> anyhow::Result<()> {
    let Report { request, bundle, .. } = report;
    let manifest = &bundle.manifest;
    let backbone = std::fs::read(&request.backbone).with_context(|| request.backbone.display().to_string())?;
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let mut rows = vec![
        ("command", request.command.clone()),
        ("seed", request.seed.to_string()),
        ("dsad", format!("{}, revision {}", env!("CARGO_PKG_VERSION"), revision())),
        ("made", manifest.provenance.created.clone()),
        (
            "machine",
            format!(
                "{} {}, {cores} cores, device {}",
                std::env::consts::OS,
                std::env::consts::ARCH,
                report.compute.choice
            ),
        ),
        ("pictures", format!("blake3 {}", manifest.provenance.dataset)),
        ("backbone", format!("{}, blake3 {}", request.backbone.display(), blake3::hash(&backbone).to_hex())),
    ];
    let published = |licence: &crate::bundle::manifest::Licence| {
        ("from", format!("{}, {}, sha256 {}", licence.name, licence.origin, licence.sha256))
    };
    rows.push((
        "starts from",
        manifest.provenance.base.as_ref().map_or("fresh weights".into(), |hash| format!("base, blake3 {hash}")),
    ));
    rows.extend(manifest.licences.iter().map(published));
    rows.push(("bundle", bundle.model_hash.clone()));
    *html += "<h2>To repeat it</h2><table>\n";
    for (name, text) in rows {
        writeln!(html, "<tr><th>{name}</th><td>{}</td></tr>", escape(&text))?;
    }
    writeln!(
        html,
        "</table><p>With the same pictures, backbone and program the command gives the same steps; the number of steps in a \
         number of minutes depends on the machine. The configuration (<code>--config</code>):</p><pre>{}</pre><p>What the \
         run was asked for:</p><pre>{}</pre>",
        escape(&toml::to_string(&request.config)?),
        escape(&serde_json::to_string_pretty(&report.state.request)?)
    )?;
    Ok(())
}
