//! Creation goes forward or is undone: a list of compensations, run backwards unless disarmed.

/// What to undo, in the order it was done.
#[derive(Default)]
pub(crate) struct Undo<'a> {
    steps: Vec<Box<dyn FnOnce() + 'a>>,
}

impl<'a> Undo<'a> {
    /// Remembers how to undo what was just done. A compensation is best effort: it has nobody to report to,
    /// and the error that made it necessary is the one worth telling.
    pub fn push(&mut self, step: impl FnOnce() + 'a) {
        self.steps.push(Box::new(step));
    }

    /// Success: nothing is undone.
    pub fn disarm(mut self) {
        self.steps.clear();
    }
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        while let Some(step) = self.steps.pop() {
            step();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    #[test]
    fn a_dropped_list_is_undone_backwards() {
        let seen = RefCell::new(Vec::new());
        let mut undo = Undo::default();
        undo.push(|| seen.borrow_mut().push(1));
        undo.push(|| seen.borrow_mut().push(2));
        drop(undo);
        assert_eq!(*seen.borrow(), [2, 1]);
    }

    #[test]
    fn a_disarmed_list_undoes_nothing() {
        let seen = RefCell::new(0);
        let mut undo = Undo::default();
        undo.push(|| *seen.borrow_mut() += 1);
        undo.disarm();
        assert_eq!(*seen.borrow(), 0);
    }
}
