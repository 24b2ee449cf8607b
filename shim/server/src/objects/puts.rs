//! Objects put into the store by one call: together, or not at all.

use anyhow::{Context, Result};

use super::{AnyObject, Change, Objects};

/// What was put, and what was there before.
#[derive(Debug)]
pub struct Puts {
    objects: Objects,
    done: Vec<(AnyObject, Option<AnyObject>, Change)>,
}

impl Puts {
    /// Puts them all; when one may not be, those before it are taken back.
    pub fn all(objects: &Objects, list: impl IntoIterator<Item = AnyObject>) -> Result<Puts> {
        let mut puts = Puts { objects: objects.clone(), done: Vec::new() };
        for object in list {
            match puts.one(&object) {
                Ok(done) => puts.done.push((object, done.0, done.1)),
                Err(error) => {
                    puts.take_back()?;
                    return Err(error);
                }
            }
        }
        Ok(puts)
    }

    fn one(&self, object: &AnyObject) -> Result<(Option<AnyObject>, Change)> {
        let before = object.stored(&self.objects)?;
        Ok((before, object.put(&self.objects)?))
    }

    /// What was done to each.
    pub fn changes(&self) -> impl Iterator<Item = (&AnyObject, Change)> {
        self.done.iter().map(|(object, _, change)| (object, *change))
    }

    /// Makes the store what it was.
    pub fn take_back(self) -> Result<()> {
        for (object, before, change) in self.done.into_iter().rev() {
            let result = match (change, before) {
                (Change::Unchanged, _) => Ok(()),
                (_, None) => object.delete(&self.objects).map(drop),
                // Deleted first: what may not change may be made anew.
                (_, Some(before)) => object.delete(&self.objects).and_then(|_| before.put(&self.objects)).map(drop),
            };
            result.with_context(|| format!("take back {object}"))?;
        }
        Ok(())
    }
}
