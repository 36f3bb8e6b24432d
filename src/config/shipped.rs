//! Where the files that ship are found.

use std::path::{Path, PathBuf};

/// Where a file or folder that ships may lie, the nearest first: below the working directory, in an installation, in the source tree that
/// the program was built in.
///
/// `source` is its path in the source tree, `installed` that below `/usr/share/dsad`.
pub fn places(source: &str, installed: &str) -> Vec<PathBuf> {
    let program = std::env::current_exe().unwrap_or_default();
    around(&program, source, installed)
}

/// The tree is known by where the program lies, not by the path that it was built at: that would be part of its bytes.
fn around(program: &Path, source: &str, installed: &str) -> Vec<PathBuf> {
    let mut places = vec![PathBuf::from(source), Path::new("/usr/share/dsad").join(installed)];
    // A program in target/release or target/TRIPLE/release.
    places.extend(
        program
            .ancestors()
            .skip(2)
            .take(4)
            .filter(|folder| folder.join("Cargo.toml").is_file())
            .map(|folder| folder.join(source)),
    );
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_finds_the_tree_that_it_lies_in() {
        let dir = tempfile::tempdir().expect("makes a folder");
        std::fs::write(dir.path().join("Cargo.toml"), "").expect("writes");
        let expected = [PathBuf::from("configs/x"), PathBuf::from("/usr/share/dsad/x"), dir.path().join("configs/x")];
        for program in
            ["target/release/dsad", "target/jetson/aarch64-unknown-linux-gnu/release/dsad", "target/debug/deps/main"]
        {
            assert_eq!(around(&dir.path().join(program), "configs/x", "x"), expected, "{program}");
        }
        assert_eq!(around(Path::new("/usr/bin/dsad"), "configs/x", "x"), expected[..2]);
    }
}
