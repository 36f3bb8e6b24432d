//! Commands as lines of text, for controllers that have no HTTP. Words of OPC 40100-1.
//!
//! ```text
//! StartSingleJob camera=top part_id="A 17";      ok camera=top frame_id=12
//! PrepareRecipe recipe=bottle;                   ok cameras=top,side
//! StartSingleJob;                                error not_ready nothing is inspected now; /readyz says why
//! ```
//!
//! A command ends with `;` or the end of a line; every answer is one line. A connection stays open.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use super::Act;
use crate::inspection::trigger::{Command, Done, RefusalCode, Refused};

/// Controllers at once; more wait in the system's queue until a place is free.
pub const PLACES: usize = 16;
/// Longest command, bytes.
const LINE: usize = 512;
/// Longest time that a command may take once it has begun, and that an answer may take to leave.
const PATIENCE: Duration = Duration::from_secs(5);
/// A connection that says nothing for so long is closed: the controller is gone, and its place is needed.
const SILENCE: Duration = Duration::from_secs(3600);

/// Talks to one controller until it leaves.
pub async fn talk(mut stream: TcpStream, peer: SocketAddr, act: Act, place: OwnedSemaphorePermit) {
    let mut held = Vec::with_capacity(LINE);
    let mut bytes = [0; LINE];
    // Every command is waited for, and a millisecond counts.
    let _ = stream.set_nodelay(true);
    loop {
        let wait = if held.is_empty() { SILENCE } else { PATIENCE };
        let count = match timeout(wait, stream.read(&mut bytes)).await {
            Ok(Ok(count @ 1..)) => count,
            Ok(Ok(0)) => break,
            Ok(Err(error)) => {
                log::debug!("tcp: {peer}: {error}");
                break;
            }
            Err(_) => {
                log::debug!("tcp: {peer}: nothing for {wait:?}");
                break;
            }
        };
        held.extend_from_slice(&bytes[..count]);
        let mut answers = String::new();
        while let Some(end) = held.iter().position(|byte| matches!(byte, b'\n' | b';')) {
            let line: Vec<u8> = held.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line[..end]);
            if !line.trim().is_empty() {
                answers += &answer(&line, &act);
            }
        }
        let long = held.len() > LINE;
        if long {
            answers += &format!("error unknown a command is longer than {LINE} bytes\n");
        }
        if !matches!(timeout(PATIENCE, stream.write_all(answers.as_bytes())).await, Ok(Ok(()))) || long {
            break;
        }
    }
    drop(place);
}

/// Does what a line says.
fn answer(line: &str, act: &Act) -> String {
    match parse(line).and_then(|command| act(command)) {
        Ok(Done::Accepted { camera, frame_id }) => format!("ok camera={camera} frame_id={frame_id}\n"),
        Ok(Done::Prepared { cameras }) => format!("ok cameras={}\n", cameras.join(",")),
        Err(Refused { code, text }) => format!("error {} {}\n", code.word(), text.replace(['\r', '\n'], " ")),
    }
}

/// The command of a line.
fn parse(line: &str) -> Result<Command, Refused> {
    let unknown = |text: String| Refused::new(RefusalCode::Unknown, text);
    let (word, rest) = line.trim().split_once(char::is_whitespace).unwrap_or((line.trim(), ""));
    let (mut camera, mut part_id, mut recipe) = (None, None, None);
    for (key, value) in pairs(rest).map_err(unknown)? {
        let place = match (word, key) {
            (_, "camera") => &mut camera,
            ("StartSingleJob", "part_id") => &mut part_id,
            ("PrepareRecipe", "recipe") => &mut recipe,
            _ => return Err(unknown(format!("{word} has no '{key}'"))),
        };
        if place.replace(value).is_some() {
            return Err(unknown(format!("'{key}' is there twice")));
        }
    }
    match (word, recipe) {
        ("StartSingleJob", _) => Ok(Command::Trigger { camera, part_id, source: "tcp" }),
        ("PrepareRecipe", Some(recipe)) => Ok(Command::PrepareRecipe { camera, recipe }),
        ("PrepareRecipe", None) => Err(unknown("PrepareRecipe needs recipe=NAME".into())),
        _ => Err(unknown(format!("no command '{word}'; there are StartSingleJob and PrepareRecipe"))),
    }
}

/// `key=value` or `key="value with spaces"`, any number of them.
fn pairs(mut text: &str) -> Result<Vec<(&str, String)>, String> {
    let mut found = Vec::new();
    while !text.trim_start().is_empty() {
        let (key, rest) = text.trim_start().split_once('=').ok_or("a key needs a value: key=value")?;
        let (value, rest) = match rest.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').ok_or("a quotation mark is not closed")?,
            None => rest.split_once(char::is_whitespace).unwrap_or((rest, "")),
        };
        found.push((key.trim(), value.to_owned()));
        text = rest;
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    #[test]
    fn commands_are_read() {
        let trigger = |camera: Option<&str>, part_id: Option<&str>| Command::Trigger {
            camera: camera.map(Into::into),
            part_id: part_id.map(Into::into),
            source: "tcp",
        };
        assert_eq!(parse("StartSingleJob\r"), Ok(trigger(None, None)));
        assert_eq!(parse(" StartSingleJob part_id=7  camera=top"), Ok(trigger(Some("top"), Some("7"))));
        assert_eq!(parse("StartSingleJob part_id=\"A 17 = x\""), Ok(trigger(None, Some("A 17 = x"))));
        let prepare = Command::PrepareRecipe { camera: None, recipe: "bottle".into() };
        assert_eq!(parse("PrepareRecipe recipe=bottle"), Ok(prepare));
    }

    #[test]
    fn what_is_no_command_is_refused_with_words() {
        for (line, word) in [
            ("Start", "StartSingleJob"),
            ("PrepareRecipe", "recipe=NAME"),
            ("StartSingleJob recipe=x", "no 'recipe'"),
            ("StartSingleJob camera=a camera=b", "twice"),
            ("StartSingleJob camera", "key=value"),
            ("StartSingleJob part_id=\"a", "not closed"),
        ] {
            let refused = parse(line).expect_err(line);
            assert!(refused.code == RefusalCode::Unknown && refused.text.contains(word), "{line}: {refused}");
        }
    }

    #[test]
    fn any_bytes_are_answered() {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let words =
            ["StartSingleJob", "PrepareRecipe", " ", "=", "\"", "camera", "part_id", "\u{e9}", "\0", "recipe=x"];
        let act: Act = std::sync::Arc::new(|_| Err(Refused::new(RefusalCode::NotReady, "a\nb")));
        for _ in 0..100_000 {
            let line: String = (0..rng.random_range(0..12)).map(|_| words[rng.random_range(0..words.len())]).collect();
            let answer = answer(&line, &act);
            assert!(answer.starts_with("error ") && answer.lines().count() == 1 && answer.ends_with('\n'), "{line}");
        }
    }
}
