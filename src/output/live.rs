//! Inspections as they come: a channel to whoever shows them (a terminal, the summary of a demo).

use crossbeam::channel::{Sender, TrySendError};

use super::envelope::Envelopes;
use crate::inspection::event::Event;
use crate::inspection::verdict::{Inspection, SinkError, VerdictSink};

/// A sink that hands events on.
pub struct LiveSink {
    envelopes: Envelopes,
    events: Sender<Event>,
}

impl LiveSink {
    /// Events into a channel; its reader must keep up, or events are refused and counted by the publish stage.
    pub fn new(envelopes: Envelopes, events: Sender<Event>) -> Self {
        Self { envelopes, events }
    }
}

impl VerdictSink for LiveSink {
    fn name(&self) -> &str {
        "live"
    }

    fn publish(&mut self, inspection: &Inspection) -> Result<(), SinkError> {
        let event = Event::new(inspection, self.envelopes.make(), None);
        self.events.try_send(event).map_err(|error| {
            SinkError(match error {
                TrySendError::Full(_) => "the reader does not keep up".into(),
                TrySendError::Disconnected(_) => "the reader has ended".into(),
            })
        })
    }
}
