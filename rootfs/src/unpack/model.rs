//! What a layer's tree must look like, computed from its entries alone.
//!
//! The same rules as in [`tree`](super::tree), over a map instead of a file system. `verify` holds a layer's files against
//! it, and the tests hold `tree` against it.

use std::collections::BTreeMap;

use super::tar::{Entry, Kind};

/// What stands at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeKind {
    /// As the entry says.
    Entry(Kind),
    /// A character device 0:0.
    Whiteout,
}

/// One path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// What stands there.
    pub kind: NodeKind,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time.
    pub mtime: (i64, u32),
    /// The size of a file.
    pub size: u64,
    /// A device's numbers.
    pub device: (u32, u32),
    /// Where a symbolic link points.
    pub link: Vec<u8>,
    /// Extended attributes, but overlay's.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// A directory that hides those of lower layers.
    pub opaque: bool,
    /// A directory that has an entry.
    pub explicit: bool,
    /// Paths of the same number are hard links to one file.
    pub inode: usize,
}

/// See the [module](self).
#[derive(Debug, Default)]
pub struct Model {
    /// All paths; the root is the empty one.
    pub nodes: BTreeMap<Vec<u8>, Node>,
    inodes: usize,
}

impl Model {
    /// The tree of a layer without entries.
    pub fn new() -> Model {
        let mut model = Model::default();
        let root = model.implicit();
        model.nodes.insert(Vec::new(), root);
        model
    }

    fn implicit(&mut self) -> Node {
        self.inodes += 1;
        Node {
            kind: NodeKind::Entry(Kind::Directory),
            mode: 0o755,
            uid: 0,
            gid: 0,
            mtime: (0, 0),
            size: 0,
            device: (0, 0),
            link: Vec::new(),
            xattrs: BTreeMap::new(),
            opaque: false,
            explicit: false,
            inode: self.inodes,
        }
    }

    /// Applies one entry, of an archive that was found good when it was unpacked. `None`: it is not one.
    pub fn apply(&mut self, entry: &Entry) -> Option<()> {
        let names: Vec<&[u8]> =
            entry.path.split(|b| *b == b'/').filter(|name| !name.is_empty() && *name != b".").collect();
        let Some((name, parents)) = names.split_last() else {
            return self.directory(Vec::new(), entry);
        };
        if names[0].starts_with(b".wh..wh.") && *name != b".wh..wh..opq" {
            return Some(());
        }
        let parent = self.enter(parents, true)?;
        if *name == b".wh..wh..opq" {
            self.nodes.get_mut(&parent)?.opaque = true;
            return Some(());
        }
        if name.starts_with(b".wh..wh.") {
            return Some(());
        }
        if let Some(hidden) = name.strip_prefix(b".wh.") {
            return self.whiteout(join(&parent, hidden));
        }
        let path = join(&parent, name);
        match entry.kind {
            Kind::Directory => self.directory(path, entry),
            Kind::HardLink => self.hard_link(path, entry),
            Kind::Char if entry.device == (0, 0) => self.whiteout(path),
            _ => {
                self.remove(&path);
                let mut node = self.implicit();
                node.size = if entry.kind == Kind::File { entry.size } else { 0 };
                node.kind = NodeKind::Entry(entry.kind);
                node.mode = if entry.kind == Kind::Symlink { 0o777 } else { entry.mode };
                (node.uid, node.gid, node.mtime) = (entry.uid, entry.gid, entry.mtime);
                node.device = entry.device;
                if entry.kind == Kind::Symlink {
                    node.link.clone_from(&entry.link);
                }
                node.xattrs = entry.xattrs.iter().cloned().collect();
                self.nodes.insert(path, node);
                Some(())
            }
        }
    }

    fn directory(&mut self, path: Vec<u8>, entry: &Entry) -> Option<()> {
        let known = self.nodes.get(&path).filter(|node| node.kind == NodeKind::Entry(Kind::Directory)).cloned();
        let mut node = match known {
            Some(node) => node,
            None => {
                let hidden = self.nodes.get(&path).is_some_and(|node| node.kind == NodeKind::Whiteout);
                self.remove(&path);
                Node { opaque: hidden, ..self.implicit() }
            }
        };
        node.explicit = true;
        (node.mode, node.uid, node.gid, node.mtime) = (entry.mode, entry.uid, entry.gid, entry.mtime);
        node.xattrs.extend(entry.xattrs.iter().cloned());
        self.nodes.insert(path, node);
        Some(())
    }

    fn hard_link(&mut self, path: Vec<u8>, entry: &Entry) -> Option<()> {
        let names: Vec<&[u8]> =
            entry.link.split(|b| *b == b'/').filter(|name| !name.is_empty() && *name != b".").collect();
        let (name, parents) = names.split_last()?;
        let source = join(&self.enter(parents, false)?, name);
        let node = self.nodes.get(&source)?.clone();
        if self.nodes.get(&path).is_some_and(|present| present.inode == node.inode) {
            return Some(());
        }
        self.remove(&path);
        self.nodes.insert(path, node);
        Some(())
    }

    fn whiteout(&mut self, path: Vec<u8>) -> Option<()> {
        match self.nodes.get_mut(&path) {
            Some(node) => node.opaque |= node.kind == NodeKind::Entry(Kind::Directory),
            None => {
                let node = Node { kind: NodeKind::Whiteout, mode: 0, ..self.implicit() };
                self.nodes.insert(path, node);
            }
        }
        Some(())
    }

    /// The real path of a directory; missing ones are made if so wished.
    fn enter(&mut self, parents: &[&[u8]], make: bool) -> Option<Vec<u8>> {
        let mut todo: Vec<Vec<u8>> = parents.iter().rev().map(|name| name.to_vec()).collect();
        let mut here = Vec::new();
        let mut steps = 0;
        while let Some(name) = todo.pop() {
            steps += 1;
            if steps > 10_000 {
                return None;
            }
            if name == b".." {
                here.truncate(here.iter().rposition(|byte| *byte == b'/').unwrap_or(0));
                continue;
            }
            let path = join(&here, &name);
            match self.nodes.get(&path).map(|node| (node.kind, node.link.clone())) {
                Some((NodeKind::Entry(Kind::Directory), _)) => here = path,
                Some((NodeKind::Entry(Kind::Symlink), link)) => {
                    if link.starts_with(b"/") {
                        here.clear();
                    }
                    let names = link.split(|b| *b == b'/').filter(|name| !name.is_empty() && *name != b".");
                    todo.extend(names.rev().map(<[u8]>::to_vec));
                }
                Some((NodeKind::Whiteout, _)) if make => {
                    let node = Node { opaque: true, ..self.implicit() };
                    self.nodes.insert(path.clone(), node);
                    here = path;
                }
                None if make => {
                    let node = self.implicit();
                    self.nodes.insert(path.clone(), node);
                    here = path;
                }
                _ => return None,
            }
        }
        Some(here)
    }

    fn remove(&mut self, path: &[u8]) {
        if self.nodes.remove(path).is_some() {
            let beneath = [path, b"/"].concat();
            let inner = self.nodes.range(beneath.clone()..).map(|(path, _)| path);
            let gone: Vec<Vec<u8>> = inner.take_while(|path| path.starts_with(&beneath)).cloned().collect();
            for path in gone {
                self.nodes.remove(&path);
            }
        }
    }
}

fn join(parent: &[u8], name: &[u8]) -> Vec<u8> {
    if parent.is_empty() { name.to_vec() } else { [parent, b"/", name].concat() }
}
