//! Where the log goes: to the journal with fields where standard error is the journal, else to standard error as text.

use std::fs::{File, Metadata};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use log::{LevelFilter, Log, Metadata as Target, Record};
use systemd_journal_logger::JournalLog;

/// The variable by which whoever starts the program says what is logged. It goes before the configuration.
const ASKED: &str = "RUST_LOG";
/// The variable by which systemd says that it connected an output to the journal.
const STREAM: &str = "JOURNAL_STREAM";

/// What is logged, and where to.
struct Logger {
    /// What was asked for when the program was started.
    asked: Option<env_logger::Logger>,
    to: Box<dyn Log>,
}

impl Log for Logger {
    fn enabled(&self, target: &Target<'_>) -> bool {
        match &self.asked {
            Some(asked) => asked.enabled(target),
            None => is_wanted(target, log::max_level()),
        }
    }

    fn log(&self, record: &Record<'_>) {
        let wanted = match &self.asked {
            Some(asked) => asked.matches(record),
            None => is_wanted(record.metadata(), log::max_level()),
        };
        if wanted {
            self.to.log(record);
        }
    }

    fn flush(&self) {
        self.to.flush();
    }
}

/// Of this program what `level` says, of the packages that it is made of no more than warnings.
fn is_wanted(target: &Target<'_>, level: LevelFilter) -> bool {
    let own = target.target().split("::").next() == Some(env!("CARGO_PKG_NAME"));
    target.level() <= if own { level } else { level.min(LevelFilter::Warn) }
}

/// Logs from now on: what `RUST_LOG` says, or the information of this program and the warnings of others.
pub fn install() {
    let asked = std::env::var(ASKED).ok().map(|words| env_logger::Builder::new().parse_filters(&words).build());
    let level = asked.as_ref().map_or(LevelFilter::Info, env_logger::Logger::filter);
    let text = || Box::new(env_logger::Builder::new().filter_level(LevelFilter::Trace).build());
    let (to, problem): (Box<dyn Log>, _) = match to_journal().then(JournalLog::new) {
        Some(Ok(journal)) => (Box::new(journal), None),
        Some(Err(error)) => (text(), Some(error)),
        None => (text(), None),
    };
    if log::set_boxed_logger(Box::new(Logger { asked, to })).is_ok() {
        log::set_max_level(level);
    }
    if let Some(error) = problem {
        log::warn!("the journal does not listen: {error}; the log goes to standard error, without fields");
    }
}

/// Logs this program from now on by its configuration, unless `RUST_LOG` was there at the start.
pub fn set_level(level: LevelFilter) {
    if std::env::var_os(ASKED).is_none() {
        log::set_max_level(level);
    }
}

/// Whether standard error is the journal.
fn to_journal() -> bool {
    let stderr = std::io::stderr().as_fd().try_clone_to_owned().and_then(|stderr| File::from(stderr).metadata());
    stderr.is_ok_and(|stderr| is_stream(std::env::var(STREAM).ok().as_deref(), place(&stderr)))
}

fn place(file: &Metadata) -> (u64, u64) {
    (file.dev(), file.ino())
}

/// Whether the variable names this device and inode: it is inherited by programs whose output goes elsewhere.
fn is_stream(variable: Option<&str>, place: (u64, u64)) -> bool {
    let named = variable.and_then(|text| text.split_once(':'));
    named.is_some_and(|(device, inode)| (device.parse(), inode.parse()) == (Ok(place.0), Ok(place.1)))
}

#[cfg(test)]
mod tests {
    use log::Level;

    use super::*;

    #[test]
    fn the_journal_is_known_by_device_and_inode() {
        assert!(is_stream(Some("8:131"), (8, 131)));
        for other in
            [None, Some(""), Some("8"), Some("8:"), Some("8:132"), Some("9:131"), Some("x:131"), Some("8:131:1")]
        {
            assert!(!is_stream(other, (8, 131)), "{other:?}");
        }
    }

    #[test]
    fn other_packages_say_warnings_at_most() {
        let wanted = |target: &str, level: Level, of: LevelFilter| {
            is_wanted(&Target::builder().target(target).level(level).build(), of)
        };
        assert!(wanted("dsad::daemon::stages", Level::Debug, LevelFilter::Debug));
        assert!(!wanted("dsad::daemon::stages", Level::Debug, LevelFilter::Info));
        assert!(!wanted("dsadx", Level::Info, LevelFilter::Info));
        assert!(!wanted("cubecl::tune", Level::Info, LevelFilter::Trace));
        assert!(wanted("cubecl::tune", Level::Warn, LevelFilter::Info));
        assert!(!wanted("cubecl::tune", Level::Warn, LevelFilter::Error));
    }
}
