//! Commands as lines of text, for controllers that have no HTTP. Words of OPC 40100-1.
//!
//! ```text
//! StartSingleJob camera=top part_id="A 17";      ok camera=top frame_id=12
//!                                                verdict camera=top frame_id=12 part_id="A 17" verdict=pass reason= score=0.31 event_id=01KA...
//! PrepareRecipe recipe=bottle;                   ok cameras=top,side
//! Halt;                                          ok state=Halted
//! StartSingleJob;                                error not_ready nothing is inspected in Halted; /readyz says why
//! Subscribe;                                     ok
//! ```
//!
//! A command ends with `;` or the end of a line; every answer is one line. The verdict of a `StartSingleJob` follows on its
//! connection as a line of its own, and after `Subscribe` those of all cameras do. A connection stays open.

use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{sleep, timeout};

use super::Act;
use super::verdicts::{Board, Follower};
use crate::inspection::account::Level;
use crate::inspection::command::{Order, Source};
use crate::inspection::trigger::{Done, RefusalCode, Refused};

/// Controllers at once; more wait in the system's queue until a place is free.
pub const PLACES: usize = 16;
/// Longest command, bytes.
const LINE: usize = 512;
/// Longest time that a command may take once it has begun, and that an answer may take to leave.
const PATIENCE: Duration = Duration::from_secs(5);
/// A connection on which nothing is said for so long is closed: the controller is gone, and its place is needed.
const SILENCE: Duration = Duration::from_secs(3600);
/// Verdicts that a connection may wait for.
const AWAITED: usize = 64;

/// One connection.
struct Talk {
    act: Act,
    source: Source,
    follower: Follower,
    /// Triggers of this connection whose verdicts are not told yet.
    awaited: Vec<(String, u64)>,
    /// Whether it hears of all verdicts.
    subscribed: bool,
}

/// What a connection woke up for.
enum Woken {
    Read(io::Result<usize>),
    Verdicts,
    Silence,
}

/// Talks to one controller until it leaves.
pub async fn talk(
    mut stream: TcpStream,
    peer: SocketAddr,
    act: Act,
    level: Level,
    board: Arc<Board>,
    place: OwnedSemaphorePermit,
) {
    let source = Source::unnamed("tcp", peer, level);
    let mut talk = Talk { act, source, follower: Follower::new(&board), awaited: Vec::new(), subscribed: false };
    let mut held = Vec::with_capacity(LINE);
    let mut bytes = [0; LINE];
    // Every command is waited for, and a millisecond counts.
    let _ = stream.set_nodelay(true);
    let (mut from, mut to) = stream.split();
    let mut patience = Box::pin(sleep(SILENCE));
    loop {
        let mut answers = String::new();
        let mut long = false;
        let woken = {
            let (mut read, mut told) = (pin!(from.read(&mut bytes)), pin!(talk.follower.changed()));
            poll_fn(|context| {
                if let Poll::Ready(count) = read.as_mut().poll(context) {
                    return Poll::Ready(Woken::Read(count));
                }
                if told.as_mut().poll(context).is_ready() {
                    return Poll::Ready(Woken::Verdicts);
                }
                patience.as_mut().poll(context).map(|()| Woken::Silence)
            })
            .await
        };
        match woken {
            Woken::Read(Ok(count @ 1..)) => {
                held.extend_from_slice(&bytes[..count]);
                while let Some(end) = held.iter().position(|byte| matches!(byte, b'\n' | b';')) {
                    let line: Vec<u8> = held.drain(..=end).collect();
                    let line = String::from_utf8_lossy(&line[..end]);
                    if !line.trim().is_empty() {
                        answers += &talk.answer(&line);
                    }
                }
                long = held.len() > LINE;
                if long {
                    answers += &format!("error unknown a command is longer than {LINE} bytes\n");
                }
                patience.set(sleep(if held.is_empty() { SILENCE } else { PATIENCE }));
            }
            Woken::Read(Ok(_)) => break,
            Woken::Read(Err(error)) => {
                log::debug!("tcp: {peer}: {error}");
                break;
            }
            Woken::Verdicts => {}
            Woken::Silence => {
                log::debug!("tcp: {peer}: it said nothing for too long");
                break;
            }
        }
        answers += &talk.verdicts();
        if answers.is_empty() {
            continue;
        }
        if !matches!(timeout(PATIENCE, to.write_all(answers.as_bytes())).await, Ok(Ok(()))) || long {
            break;
        }
        if held.is_empty() {
            // Whoever takes lines is there.
            patience.set(sleep(SILENCE));
        }
    }
    drop(place);
}

impl Talk {
    /// Does what a line says.
    fn answer(&mut self, line: &str) -> String {
        match self.obey(line) {
            Ok(answer) => format!("ok{answer}\n"),
            Err(Refused { code, text }) => format!("error {} {}\n", code.word(), text.replace(['\r', '\n'], " ")),
        }
    }

    fn obey(&mut self, line: &str) -> Result<String, Refused> {
        let (word, fields) = parse(line)?;
        if word == "Subscribe" && fields.is_empty() {
            if !self.subscribed && self.awaited.is_empty() {
                self.follower.catch_up();
            }
            self.subscribed = true;
            return Ok(String::new());
        }
        if self.awaited.len() >= AWAITED {
            let text = format!("{AWAITED} verdicts are awaited on this connection already");
            return Err(Refused::new(RefusalCode::NotReady, text));
        }
        if self.awaited.is_empty() && !self.subscribed {
            // The verdict may be there before the answer.
            self.follower.catch_up();
        }
        let order = Order::parse(word, &fields, self.source.clone())?;
        Ok(match (self.act)(order)? {
            Done::Accepted { camera, frame_id } => {
                let answer = format!(" camera={camera} frame_id={frame_id}");
                self.awaited.push((camera, frame_id));
                answer
            }
            Done::Prepared { cameras } => format!(" cameras={}", cameras.join(",")),
            Done::Entered { state } => format!(" state={}", state.word()),
        })
    }

    /// Lines of the verdicts that this connection waits for.
    fn verdicts(&mut self) -> String {
        let (subscribed, awaited) = (self.subscribed, &mut self.awaited);
        if awaited.is_empty() && !subscribed {
            return String::new();
        }
        let (entries, missed) = self.follower.take(|entry| {
            let place = awaited.iter().position(|(camera, id)| *id == entry.frame_id && **camera == *entry.camera.0);
            place.map(|place| awaited.swap_remove(place)).is_some() || subscribed
        });
        let mut lines: String = entries.iter().map(|entry| entry.line()).collect();
        if missed > 0 {
            // Which they were, nobody knows any more: what is awaited may be among them.
            awaited.clear();
            lines.insert_str(0, &format!("missed {missed}\n"));
        }
        lines
    }
}

/// The word of a line, and its fields.
fn parse(line: &str) -> Result<(&str, BTreeMap<String, String>), Refused> {
    let unknown = |text: String| Refused::new(RefusalCode::Unknown, text);
    let (word, rest) = line.trim().split_once(char::is_whitespace).unwrap_or((line.trim(), ""));
    let mut fields = BTreeMap::new();
    for (key, value) in pairs(rest).map_err(unknown)? {
        if fields.insert(key.to_owned(), value).is_some() {
            return Err(unknown(format!("'{key}' is there twice")));
        }
    }
    Ok((word, fields))
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
    use crate::inspection::command::Command;

    fn command(line: &str) -> Result<Command, Refused> {
        let (word, fields) = parse(line)?;
        Command::parse(word, &fields)
    }

    #[test]
    fn commands_are_read() {
        let trigger = |camera: Option<&str>, part_id: Option<&str>| Command::StartSingleJob {
            camera: camera.map(Into::into),
            part_id: part_id.map(Into::into),
        };
        assert_eq!(command("StartSingleJob\r"), Ok(trigger(None, None)));
        assert_eq!(command(" StartSingleJob part_id=7  camera=top"), Ok(trigger(Some("top"), Some("7"))));
        assert_eq!(command("StartSingleJob part_id=\"A 17 = x\""), Ok(trigger(None, Some("A 17 = x"))));
        assert_eq!(command("Halt"), Ok(Command::Halt));
    }

    #[test]
    fn what_is_no_command_is_refused_with_words() {
        for (line, word) in [
            ("Start", "StartSingleJob"),
            ("StartSingleJob recipe=x", "no 'recipe'"),
            ("StartSingleJob camera=a camera=b", "twice"),
            ("StartSingleJob camera", "key=value"),
            ("StartSingleJob part_id=\"a", "not closed"),
        ] {
            let refused = command(line).expect_err(line);
            assert!(refused.code == RefusalCode::Unknown && refused.text.contains(word), "{line}: {refused}");
        }
    }

    #[test]
    fn any_bytes_are_answered() {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let words = [
            "StartSingleJob",
            "PrepareRecipe",
            "Halt",
            "Subscribe",
            " ",
            "=",
            "\"",
            "camera",
            "part_id",
            "\u{e9}",
            "\0",
            "recipe=x",
        ];
        let act: Act = Arc::new(|_| Err(Refused::new(RefusalCode::NotReady, "a\nb")));
        let source = Source::unnamed("tcp", "test", Level::Operator);
        let follower = Follower::new(&Arc::default());
        let mut talk = Talk { act, source, follower, awaited: Vec::new(), subscribed: false };
        for _ in 0..100_000 {
            let line: String = (0..rng.random_range(0..12)).map(|_| words[rng.random_range(0..words.len())]).collect();
            let answer = talk.answer(&line);
            let said = answer == "ok\n" || answer.starts_with("error ");
            assert!(said && answer.lines().count() == 1 && answer.ends_with('\n'), "{line}: {answer}");
        }
    }
}
