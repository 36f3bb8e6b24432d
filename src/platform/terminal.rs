//! Passwords from a terminal, without showing them; or from a pipe.

use std::io::{self, BufRead, IsTerminal, Write};

use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};

/// One line of standard input, after a prompt where that is a terminal.
///
/// # Errors
/// There is none, or the terminal does not do what is asked for.
pub fn password(prompt: &str) -> io::Result<String> {
    let input = io::stdin();
    let _quiet = if input.is_terminal() {
        eprint!("{prompt}: ");
        io::stderr().flush()?;
        Some(Quiet::new()?)
    } else {
        None
    };
    let mut line = String::new();
    if input.lock().read_line(&mut line)? == 0 {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "no password on standard input"));
    }
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

/// Whether somebody types.
pub fn is_terminal() -> bool {
    io::stdin().is_terminal()
}

/// A terminal that does not show what is typed, as long as this lives.
struct Quiet(rustix::termios::Termios);

impl Quiet {
    fn new() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut quiet = before.clone();
        quiet.local_modes.remove(LocalModes::ECHO);
        tcsetattr(io::stdin(), OptionalActions::Flush, &quiet)?;
        Ok(Self(before))
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        // What went wrong here cannot be told to anybody but the terminal itself.
        let _ = tcsetattr(io::stdin(), OptionalActions::Flush, &self.0);
        eprintln!();
    }
}
