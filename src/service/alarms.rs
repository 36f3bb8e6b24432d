//! Alarms: what begins or ends to be wrong, told to the broker and the webhook through the outbox.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::Desk;
use crate::inspection::station_state::State;
use crate::inspection::time::{Clock, rfc3339};
use crate::output::record::{Clerk, RecordHealth};

/// How often the station is looked at.
const TICK: Duration = Duration::from_millis(200);

/// Works on the calling thread until the record is closed. `nap` sleeps.
pub fn run(desk: &Desk, clerk: &Clerk, record: &Arc<RecordHealth>, clock: &dyn Clock, nap: impl Fn(Duration)) {
    // While the station starts much is not there yet, and that is no alarm.
    let mut started = false;
    let mut known: BTreeSet<String> = BTreeSet::new();
    while !record.is_closed() {
        nap(TICK);
        let Some(reading) = desk.read() else { continue };
        started |= reading.state != State::Preoperational;
        if !started {
            continue;
        }
        let drifts = reading.cameras.iter().filter_map(|camera| {
            let words = camera.drift.as_ref()?.1.words();
            (!words.is_empty()).then(|| format!("camera {}: {} drifted", camera.camera, words.join(" and ")))
        });
        let faults = reading.faults.iter().map(|fault| format!("{} {}: {}", fault.kind.word(), fault.of, fault.text));
        // What is told with a time in it is another text every second.
        let now: BTreeSet<String> = faults.chain(drifts).collect();
        let at = rfc3339(clock.wall_nanos());
        let changes =
            now.difference(&known).map(|what| (what, true)).chain(known.difference(&now).map(|what| (what, false)));
        let told =
            changes.map(|(what, on)| clerk.message("alarm", json!({"t_wall": at, "on": on, "what": what}).to_string()));
        // What found no room is told at the next look.
        if told.collect::<Result<Vec<()>, _>>().is_ok() {
            known = now;
        }
    }
}
