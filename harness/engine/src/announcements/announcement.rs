//! What a target announces, as data. Knows no pattern.

use scenarios::Event;

/// Something that a target announced in a line of its output.
#[derive(Debug, Clone, PartialEq)]
pub struct Announcement {
    /// The job that it is about, if the line names one.
    pub job: Option<String>,
    /// What it says.
    pub what: Announced,
}

/// What an announcement says.
#[derive(Debug, Clone, PartialEq)]
pub enum Announced {
    /// A training step is done. The loss may be NaN or infinite.
    Step { step: u64, loss: Option<f64> },
    /// This step is durable.
    Saved { step: u64 },
    /// The target resumes from this step; 0 is from scratch.
    Resumed { step: u64 },
    /// The target goes back to this step on purpose, and does those after it again.
    RolledBack { step: u64 },
    /// What a step consumed, such as a digest of its batch.
    Consumed { step: u64, value: String },
    /// A job is done, with this value.
    Finished { value: String },
}

impl Announcement {
    /// The event of the record. `None`: it is recorded as a line of output.
    pub fn event(&self) -> Option<Event> {
        let job = self.job.clone();
        match self.what {
            Announced::Step { step, loss } => {
                Some(Event::Step { step, loss: loss.filter(|loss| loss.is_finite()), job })
            }
            Announced::Saved { step } => Some(Event::Saved { step, job }),
            Announced::Resumed { step } => Some(Event::Resumed { step, job }),
            Announced::RolledBack { step } => Some(Event::RolledBack { step, job }),
            Announced::Consumed { .. } | Announced::Finished { .. } => None,
        }
    }

    /// What an event of a record announced.
    pub fn of_event(event: &Event) -> Option<Announcement> {
        let (what, job) = match event {
            Event::Step { step, loss, job } => (Announced::Step { step: *step, loss: *loss }, job),
            Event::Saved { step, job } => (Announced::Saved { step: *step }, job),
            Event::Resumed { step, job } => (Announced::Resumed { step: *step }, job),
            Event::RolledBack { step, job } => (Announced::RolledBack { step: *step }, job),
            _ => return None,
        };
        Some(Announcement { job: job.clone(), what })
    }
}
