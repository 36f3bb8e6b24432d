//! Files that only the station's user may read: whole and on the disk, or as they were before.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::Path;

/// Writes a file anew, with mode 0600; makes its folder, with mode 0700, where there is none.
///
/// # Errors
/// The system refuses; the file is as it was.
pub fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".partial");
    let partial = folder.join(name);
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&partial)?;
    // One that a crash left may have been made by somebody else.
    file.set_permissions(fs::Permissions::from_mode(0o600))?;
    file.write_all(bytes)?;
    // Written by root, it is still the station's.
    let owner = fs::metadata(folder)?;
    if file.metadata()?.uid() != owner.uid() {
        fchown(&file, Some(owner.uid()), Some(owner.gid()))?;
    }
    file.sync_all()?;
    fs::rename(&partial, path)?;
    // The name is on the disk when its folder is.
    File::open(folder)?.sync_all()
}

/// Removes a file, for good.
///
/// # Errors
/// The system refuses. A file that is not there is none.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Ok(()) => path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_is_for_its_owner_alone() {
        let home = tempfile::tempdir().expect("directory");
        let path = home.path().join("new/secret");
        for text in ["first, and longer", "second"] {
            write(&path, text.as_bytes()).expect("writes");
            assert_eq!(fs::read_to_string(&path).expect("reads"), text);
            assert_eq!(fs::metadata(&path).expect("is there").permissions().mode() & 0o777, 0o600);
        }
        assert_eq!(fs::read_dir(home.path().join("new")).expect("folder").count(), 1, "nothing is left over");
        remove(&path).expect("removes");
        remove(&path).expect("is gone already");
        assert!(!path.exists());
    }
}
