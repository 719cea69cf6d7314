//! A row before and after a change, and where its values are. Pure.

use crate::stream::error::Error;
use crate::stream::pgoutput::{Old, Place, Tuple};
use crate::stream::relation::{Column, Relation};

/// A row before and after a change.
pub(super) struct Row<'a> {
    pub relation: &'a Relation,
    pub new: Option<Tuple<'a>>,
    pub old: Option<Old<'a>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Value<'a> {
    Null,
    Unchanged,
    Text(&'a [u8]),
    Binary,
}

impl<'a> Row<'a> {
    pub fn new(relation: &'a Relation, new: Option<Tuple<'a>>, old: Option<Old<'a>>) -> Self {
        Self { relation, new, old }
    }

    /// Finds where its columns are.
    pub fn place(&self, new: &mut Vec<Place>, old: &mut Vec<Place>) -> Result<(), Error> {
        for (tuple, places) in [(self.new, new), (self.old.map(|old| old.tuple()), old)] {
            let Some(tuple) = tuple else { continue };
            tuple.places(places);
            if places.len() != self.relation.columns.len() {
                return Err(Error::Columns {
                    table: self.relation.table.clone(),
                    found: places.len(),
                    described: self.relation.columns.len(),
                });
            }
        }
        Ok(())
    }

    /// A value of the row as it is after the change, or was before it was deleted.
    pub fn value(&self, place: usize, new: &[Place], old: &[Place]) -> Value<'a> {
        let Some(tuple) = self.new else { return self.old_value(place, old) };
        match value(tuple, new.get(place)) {
            // It is what it was, and that may have come along.
            Value::Unchanged if self.has_old(place) => self.old_value(place, old),
            value => value,
        }
    }

    pub fn old_value(&self, place: usize, old: &[Place]) -> Value<'a> {
        self.old.map_or(Value::Null, |tuple| value(tuple.tuple(), old.get(place)))
    }

    fn has_old(&self, place: usize) -> bool {
        match self.old {
            Some(Old::Row(_)) => true,
            Some(Old::Key(_)) => self.relation.columns.get(place).is_some_and(|column| column.identity),
            None => false,
        }
    }

    pub fn binary(&self, column: &Column) -> Error {
        Error::Binary { table: self.relation.table.clone(), column: column.name.clone() }
    }
}

fn value<'a>(tuple: Tuple<'a>, place: Option<&Place>) -> Value<'a> {
    match place {
        Some(Place::Text { start, end }) => Value::Text(tuple.text(*start, *end)),
        Some(Place::Unchanged) => Value::Unchanged,
        Some(Place::Binary) => Value::Binary,
        Some(Place::Null) | None => Value::Null,
    }
}
