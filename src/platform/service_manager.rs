//! Talking to systemd: readiness, status, watchdog. Without systemd every call does nothing.

use std::time::Duration;

use sd_notify::NotifyState;

/// How long one step of the start may take before systemd gives up, in place of what its unit allows for all of them. A network's
/// first frame on a GPU compiles every kernel, which has taken four minutes with tuning; a driver that hangs must still be found.
const STEP: Duration = Duration::from_secs(600);

/// Says which step of the start begins, and asks for the time that it may take.
pub fn starting(step: &str) {
    notify(&[NotifyState::ExtendTimeoutUsec(STEP.as_micros() as u32), NotifyState::Status(step)]);
}

/// Whether there is a service manager that wants to be told.
pub fn is_there() -> bool {
    std::env::var_os("NOTIFY_SOCKET").is_some()
}

/// Says that the service is ready.
pub fn ready(status: &str) {
    notify(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// Says that the service reads its configuration again, until it says that it is ready.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(error) => log::warn!("systemd was not told of a reload: {error}"),
    }
}

/// Says how the service is.
pub fn status(status: &str) {
    notify(&[NotifyState::Status(status)]);
}

/// Says that the service is going down.
pub fn stopping() {
    notify(&[NotifyState::Stopping]);
}

/// Feeds the watchdog.
pub fn alive() {
    notify(&[NotifyState::Watchdog]);
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        log::warn!("systemd was not told {states:?}: {error}");
    }
}
