//! Inspections as they come: a channel to whoever shows them (a terminal, the summary of a demo).

use crossbeam::channel::{Sender, TrySendError};

use crate::inspection::event::Event;
use crate::inspection::verdict::{Inspection, SinkError, VerdictSink};

/// A sink that hands events on.
pub struct LiveSink {
    events: Sender<Event>,
}

impl LiveSink {
    /// Events into a channel; its reader must keep up, or events are refused and counted by the publish stage.
    pub fn new(events: Sender<Event>) -> Self {
        Self { events }
    }
}

impl VerdictSink for LiveSink {
    fn name(&self) -> &str {
        "live"
    }

    fn publish(&mut self, _: &Inspection, event: &Event) -> Result<(), SinkError> {
        self.events.try_send(event.clone()).map_err(|error| {
            SinkError(match error {
                TrySendError::Full(_) => "the reader does not keep up".into(),
                TrySendError::Disconnected(_) => "the reader has ended".into(),
            })
        })
    }
}
