//! What a session keeps by a name that its client gave: prepared statements and portals, for a service that answers the extended
//! protocol itself. The unnamed one is replaced, another name must be free (src/backend/commands/prepare.c,
//! src/backend/utils/mmgr/portalmem.c). Pure; on whatever thread serves the client.

use super::Error;
use std::collections::HashMap;

/// Statements or portals, at most so many. Names are bytes as the client sent them; the empty one is the unnamed.
#[derive(Debug)]
pub struct Kept<T> {
    kind: Kind,
    most: usize,
    by_name: HashMap<Vec<u8>, T>,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Statement,
    Portal,
}

impl<T> Kept<T> {
    pub fn statements(most: usize) -> Self {
        Self { kind: Kind::Statement, most, by_name: HashMap::new() }
    }

    pub fn portals(most: usize) -> Self {
        Self { kind: Kind::Portal, most, by_name: HashMap::new() }
    }

    /// Makes a name free: drops the unnamed one, and leaves a named one alone.
    ///
    /// # Errors
    /// [`Error::StatementExists`] or [`Error::PortalExists`].
    pub fn free(&mut self, name: &[u8]) -> Result<(), Error> {
        if name.is_empty() {
            self.by_name.remove(name);
        } else if self.by_name.contains_key(name) {
            return Err(self.kind.taken(name));
        }
        Ok(())
    }

    /// Keeps it under a name, which is freed as by [`Kept::free`].
    ///
    /// # Errors
    /// Those of [`Kept::free`], and [`Error::TooManyKept`].
    pub fn keep(&mut self, name: &[u8], it: T) -> Result<(), Error> {
        self.free(name)?;
        if self.by_name.len() >= self.most {
            return Err(Error::TooManyKept);
        }
        self.by_name.insert(name.to_vec(), it);
        Ok(())
    }

    /// # Errors
    /// [`Error::NoStatement`] or [`Error::NoPortal`].
    pub fn find(&self, name: &[u8]) -> Result<&T, Error> {
        self.by_name.get(name).ok_or_else(|| self.kind.missing(name))
    }

    /// # Errors
    /// See [`Kept::find`].
    pub fn find_mut(&mut self, name: &[u8]) -> Result<&mut T, Error> {
        self.by_name.get_mut(name).ok_or_else(|| self.kind.missing(name))
    }

    /// As DEALLOCATE does.
    ///
    /// # Errors
    /// See [`Kept::find`].
    pub fn remove(&mut self, name: &[u8]) -> Result<T, Error> {
        self.by_name.remove(name).ok_or_else(|| self.kind.missing(name))
    }

    /// As a Close does: it need not be there.
    pub fn close(&mut self, name: &[u8]) {
        self.by_name.remove(name);
    }

    /// Forgets all but the unnamed one, as DEALLOCATE ALL does.
    pub fn clear_named(&mut self) {
        self.by_name.retain(|name, _| name.is_empty());
    }

    pub fn clear(&mut self) {
        self.by_name.clear();
    }

    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.by_name.values()
    }
}

impl Kind {
    fn missing(self, name: &[u8]) -> Error {
        match self {
            Self::Statement => Error::NoStatement(shown(name)),
            Self::Portal => Error::NoPortal(shown(name)),
        }
    }

    fn taken(self, name: &[u8]) -> Error {
        match self {
            Self::Statement => Error::StatementExists(shown(name)),
            Self::Portal => Error::PortalExists(shown(name)),
        }
    }
}

fn shown(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sqlstate<T: std::fmt::Debug>(result: Result<T, Error>) -> &'static str {
        result.unwrap_err().sqlstate()
    }

    #[test]
    fn the_unnamed_one_is_replaced_and_a_name_is_taken_once() {
        let mut statements = Kept::statements(9);
        statements.keep(b"", 1).unwrap();
        statements.keep(b"", 2).unwrap();
        assert_eq!(statements.find(b""), Ok(&2));
        statements.keep(b"a", 3).unwrap();
        let taken = statements.keep(b"a", 4).unwrap_err();
        assert_eq!(taken.to_string(), "prepared statement \"a\" already exists");
        assert_eq!(taken.sqlstate(), "42P05");
        assert_eq!(statements.find(b"a"), Ok(&3));
        statements.free(b"").unwrap();
        assert_eq!(sqlstate(statements.find(b"")), "26000");
        let mut portals = Kept::portals(9);
        portals.keep(b"\xff", 1).unwrap();
        assert_eq!(portals.free(b"\xff"), Err(Error::PortalExists("\u{fffd}".to_owned())));
        assert_eq!(sqlstate(portals.keep(b"\xff", 2)), "42P03");
    }

    #[test]
    fn what_is_not_there_is_told_as_what_it_is() {
        let (mut statements, mut portals) = (Kept::<u8>::statements(9), Kept::<u8>::portals(9));
        assert_eq!(statements.find(b"a"), Err(Error::NoStatement("a".to_owned())));
        assert_eq!(portals.find_mut(b"a"), Err(Error::NoPortal("a".to_owned())));
        assert_eq!((sqlstate(statements.remove(b"a")), sqlstate(portals.remove(b"a"))), ("26000", "34000"));
        statements.close(b"a");
        assert_eq!(Error::PortalDone(String::new()).sqlstate(), "55000");
    }

    #[test]
    fn there_is_room_again_for_what_is_closed_or_replaced() {
        let mut kept = Kept::statements(2);
        kept.keep(b"", 1).unwrap();
        kept.keep(b"a", 1).unwrap();
        assert_eq!(kept.keep(b"b", 1), Err(Error::TooManyKept));
        kept.keep(b"", 2).unwrap();
        kept.close(b"a");
        kept.keep(b"b", 3).unwrap();
        kept.clear_named();
        assert_eq!(kept.values().collect::<Vec<_>>(), [&2]);
        kept.clear();
        assert_eq!(kept.values().count(), 0);
    }
}
