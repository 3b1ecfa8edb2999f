//! Which file of a crate uses which: from the paths in `use` declarations and elsewhere in the code. Re-exports
//! are followed to the file that defines the item. Code for tests is left out. Macros are not expanded, and an
//! inline module counts as a part of its file.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::sources::{blank_comments_and_strings, tokens_without_tests};

/// A module by the names that lead to it from the crate's root.
type ModulePath = Vec<String>;

/// One use of a file by another: where it stands, and the path as written.
#[derive(Debug, Clone)]
pub(crate) struct FileUse {
    /// Index of the file that uses.
    pub(crate) from: usize,
    /// Index of the file that is used.
    pub(crate) to: usize,
    /// Line of the use, from 1.
    pub(crate) line: usize,
    /// The path as written, such as `super::Error`.
    pub(crate) path: String,
}

/// The files of one crate, and which of them use one another.
pub(crate) struct ModuleGraph {
    /// Each file's path below the crate's source directory, in order.
    pub(crate) files: Vec<PathBuf>,
    /// Each file's module, such as `explore::record`. Empty for the crate's root.
    pub(crate) modules: Vec<String>,
    /// All uses of one file by another.
    pub(crate) uses: Vec<FileUse>,
}

/// A file with the paths that occur in it.
#[derive(Default)]
struct ParsedFile {
    module: ModulePath,
    /// Names that the file imports or re-exports, and the path of each.
    bindings: BTreeMap<String, Vec<String>>,
    /// Modules of which the file imports everything.
    globs: Vec<Vec<String>>,
    /// Names that the file defines.
    items: BTreeSet<String>,
    /// All other occurrences of paths, and imports, with their lines.
    paths: Vec<(usize, Vec<String>)>,
}

/// What a path leads to.
enum Resolved {
    Module(ModulePath),
    /// An item that this file defines.
    Item(usize),
}

/// One name of a `use` declaration: its path, and its name in the file. `*` imports everything.
struct Import {
    path: Vec<String>,
    name: String,
}

impl ModuleGraph {
    /// The graph of a crate's files, each with its path below the source directory and its text.
    pub(crate) fn new(sources: &[(PathBuf, String)]) -> ModuleGraph {
        let is_source = |path: &Path| path != Path::new("main.rs") || sources.len() == 1;
        let has_lib = sources.iter().any(|(path, _)| path == Path::new("lib.rs"));
        let sources: Vec<&(PathBuf, String)> =
            sources.iter().filter(|(path, _)| !has_lib || is_source(path)).collect();
        let parsed: Vec<ParsedFile> =
            sources.iter().map(|(path, text)| ParsedFile::new(path, text)).collect();
        let by_module: BTreeMap<ModulePath, usize> =
            parsed.iter().enumerate().map(|(index, file)| (file.module.clone(), index)).collect();
        let resolver = Resolver { files: &parsed, by_module };
        let uses = (0..parsed.len()).flat_map(|index| resolver.uses_in(index)).collect();
        ModuleGraph {
            files: sources.iter().map(|(path, _)| path.clone()).collect(),
            modules: parsed.iter().map(|file| file.module.join("::")).collect(),
            uses,
        }
    }

    /// Each largest set of files that all use one another, directly or through others.
    pub(crate) fn circles(&self) -> Vec<Vec<usize>> {
        let reached: Vec<BTreeSet<usize>> =
            (0..self.files.len()).map(|start| self.reached_from(start)).collect();
        let mut circles: BTreeSet<Vec<usize>> = BTreeSet::new();
        for start in 0..self.files.len() {
            let circle: Vec<usize> =
                reached[start].iter().copied().filter(|other| reached[*other].contains(&start)).collect();
            if circle.len() > 1 {
                circles.insert(circle);
            }
        }
        circles.into_iter().collect()
    }

    fn reached_from(&self, start: usize) -> BTreeSet<usize> {
        let (mut reached, mut open) = (BTreeSet::new(), vec![start]);
        while let Some(next) = open.pop() {
            for used in self.uses.iter().filter(|used| used.from == next) {
                if reached.insert(used.to) {
                    open.push(used.to);
                }
            }
        }
        reached
    }

    /// A use for people: the place, the path as written, and the file that it leads to.
    pub(crate) fn describe(&self, used: &FileUse) -> String {
        let [from, to] = [used.from, used.to].map(|file| self.files[file].display().to_string());
        format!("{from}:{} uses `{}` of {to}", used.line, used.path)
    }
}

impl ParsedFile {
    fn new(path: &Path, text: &str) -> ParsedFile {
        let code = blank_comments_and_strings(text);
        let tokens = tokens_without_tests(&code);
        let mut file = ParsedFile { module: module_of(path), ..ParsedFile::default() };
        let is_door = ["mod.rs", "lib.rs", "main.rs"].iter().any(|name| path.ends_with(name));
        let (mut depth, mut inline_modules) = (0, Vec::new());
        let mut re_exports: Vec<(usize, Import)> = Vec::new();
        let mut used_names: BTreeSet<&str> = BTreeSet::new();
        let mut index = 0;
        while let Some((line, token)) = tokens.get(index).copied() {
            let token_at = |index: usize| tokens.get(index).map_or("", |(_, token)| *token);
            match token {
                "use" => {
                    let end = index + tokens[index..].iter().take_while(|(_, token)| *token != ";").count();
                    let words: Vec<&str> = tokens[index + 1..end].iter().map(|(_, token)| *token).collect();
                    let is_public = index > 0 && matches!(token_at(index - 1), "pub" | ")");
                    for mut import in imports(&words) {
                        leave_inline_modules(&mut import.path, inline_modules.len());
                        if import.name == "*" {
                            file.globs.push(import.path);
                            continue;
                        }
                        file.bindings.insert(import.name.clone(), import.path.clone());
                        if is_door && is_public {
                            re_exports.push((line, import));
                        } else {
                            file.paths.push((line, import.path));
                        }
                    }
                    index = end;
                }
                "{" => depth += 1,
                "}" => {
                    depth -= 1;
                    inline_modules.pop_if(|inline_depth: &mut i32| *inline_depth == depth);
                }
                "mod" if token_at(index + 2) == "{" => inline_modules.push(depth),
                "fn" | "struct" | "enum" | "union" | "trait" | "type" | "const" | "static"
                    if depth == inline_modules.len() as i32 =>
                {
                    file.items.insert(token_at(index + 1).to_owned());
                }
                _ if is_identifier(token)
                    && !(index > 0 && token_at(index - 1) == ":" && path_goes_on(&tokens, index)) =>
                {
                    let path = path_at(&tokens, index);
                    used_names.insert(token);
                    index += 3 * (path.len() - 1);
                    if path.len() > 1 {
                        let mut path: Vec<String> = path.into_iter().map(str::to_owned).collect();
                        leave_inline_modules(&mut path, inline_modules.len());
                        file.paths.push((line, path));
                    }
                }
                _ => {}
            }
            index += 1;
        }
        // A re-export is no use, unless the file uses the name itself.
        let used = re_exports.into_iter().filter(|(_, import)| used_names.contains(import.name.as_str()));
        file.paths.extend(used.map(|(line, import)| (line, import.path)));
        file
    }
}

/// Whether the identifier at `index` continues a path that began before it, such as after `Vec::<T>`.
fn path_goes_on(tokens: &[(usize, &str)], index: usize) -> bool {
    index > 1 && tokens[index - 2].1 == ":"
}

/// The path that begins at `index`: identifiers with `::` between them.
fn path_at<'a>(tokens: &[(usize, &'a str)], index: usize) -> Vec<&'a str> {
    let mut path = vec![tokens[index].1];
    let mut next = index + 1;
    while let Some([(_, ":"), (_, ":"), (_, name)]) = tokens.get(next..next + 3) {
        if !is_identifier(name) {
            break;
        }
        path.push(name);
        next += 3;
    }
    path
}

/// A path in an inline module, as it would be written outside of it.
fn leave_inline_modules(path: &mut Vec<String>, inline_modules: usize) {
    for _ in 0..inline_modules {
        if path.first().is_some_and(|first| first == "super") {
            path.remove(0);
        }
    }
}

fn is_identifier(token: &str) -> bool {
    token.starts_with(|letter: char| letter.is_ascii_alphabetic() || letter == '_')
}

/// The module of a file by its path below the source directory.
fn module_of(path: &Path) -> ModulePath {
    let names: Vec<String> =
        path.with_extension("").iter().map(|name| name.to_string_lossy().into_owned()).collect();
    match names.split_last() {
        Some((last, parents)) if ["mod", "lib", "main"].contains(&last.as_str()) => parents.to_vec(),
        _ => names,
    }
}

/// The names that a `use` declaration imports, from the tokens between `use` and the semicolon.
fn imports(words: &[&str]) -> Vec<Import> {
    let mut path = Vec::new();
    let mut index = 0;
    while let Some(word) = words.get(index) {
        match *word {
            ":" => {}
            "{" => {
                let inner = &words[index + 1..words.len() - 1];
                return split_at_commas(inner)
                    .into_iter()
                    .flat_map(imports)
                    .map(|import| Import { path: [path.clone(), import.path].concat(), name: import.name })
                    .map(without_self)
                    .collect();
            }
            "*" => return vec![Import { path, name: "*".into() }],
            "as" => {
                let name = words.get(index + 1).copied().unwrap_or_default().to_owned();
                return vec![Import { path, name }];
            }
            name => path.push(name.to_owned()),
        }
        index += 1;
    }
    let name = path.last().cloned().unwrap_or_default();
    if path.is_empty() { Vec::new() } else { vec![Import { path, name }] }
}

/// `a::{self}` imports `a`.
fn without_self(mut import: Import) -> Import {
    if import.path.len() > 1 && import.path.last().is_some_and(|last| last == "self") {
        import.path.pop();
        if import.name == "self" {
            import.name = import.path.last().cloned().unwrap_or_default();
        }
    }
    import
}

fn split_at_commas<'a, 'b>(words: &'a [&'b str]) -> Vec<&'a [&'b str]> {
    let (mut parts, mut depth, mut start) = (Vec::new(), 0, 0);
    for (index, word) in words.iter().enumerate() {
        match *word {
            "{" => depth += 1,
            "}" => depth -= 1,
            "," if depth == 0 => {
                parts.push(&words[start..index]);
                start = index + 1;
            }
            _ => {}
        }
    }
    parts.push(&words[start..]);
    parts
}

/// Finds the file that defines what a path names.
struct Resolver<'a> {
    files: &'a [ParsedFile],
    by_module: BTreeMap<ModulePath, usize>,
}

impl Resolver<'_> {
    fn uses_in(&self, from: usize) -> Vec<FileUse> {
        let file = &self.files[from];
        let mut uses = Vec::new();
        for (line, path) in &file.paths {
            // A path that leads to a module alone uses nothing of it yet.
            if let Some(Resolved::Item(to)) = self.resolve_in(from, path, 0).filter(|_| !path.is_empty())
                && to != from
            {
                uses.push(FileUse { from, to, line: *line, path: path.join("::") });
            }
        }
        for glob in &file.globs {
            if let Some(Resolved::Module(module)) = self.resolve_in(from, glob, 0)
                && let Some(to) = self.by_module.get(&module).copied().filter(|to| *to != from)
                && !self.is_below(from, &module)
            {
                uses.push(FileUse { from, to, line: 0, path: format!("{}::*", glob.join("::")) });
            }
        }
        uses
    }

    /// Whether the module is below the file's own: a glob re-export of a child.
    fn is_below(&self, file: usize, module: &ModulePath) -> bool {
        module.starts_with(&self.files[file].module)
    }

    /// Follows a path that stands in a file. `None`: it leads out of the crate.
    fn resolve_in(&self, file: usize, path: &[String], depth: usize) -> Option<Resolved> {
        let own = &self.files[file].module;
        let (first, rest) = path.split_first()?;
        match first.as_str() {
            "crate" => self.walk(Vec::new(), rest, depth),
            "self" => self.walk(own.clone(), rest, depth),
            "super" => {
                let supers = path.iter().take_while(|segment| *segment == "super").count();
                let module = own[..own.len().saturating_sub(supers)].to_vec();
                self.walk(module, &path[supers..], depth)
            }
            name => {
                let is_child = self.by_module.contains_key(&child(own, name));
                let is_imported = self.files[file].bindings.get(name).is_some_and(|bound| bound != path);
                (is_child || is_imported).then(|| self.walk(own.clone(), path, depth)).flatten()
            }
        }
    }

    /// Follows the names of a path from a module.
    fn walk(&self, mut module: ModulePath, names: &[String], depth: usize) -> Option<Resolved> {
        // A circle of re-exports does not compile, but a name may be imported by its own name.
        if depth > 20 {
            return None;
        }
        for (index, name) in names.iter().enumerate() {
            let file = *self.by_module.get(&module)?;
            let own_child = child(&module, name);
            if self.by_module.contains_key(&own_child) {
                module = own_child;
                continue;
            }
            let rest = &names[index + 1..];
            return match self.files[file].bindings.get(name) {
                _ if self.files[file].items.contains(name) => Some(Resolved::Item(file)),
                Some(bound) => match self.resolve_in(file, bound, depth + 1)? {
                    Resolved::Module(target) => self.walk(target, rest, depth + 1),
                    item => Some(item),
                },
                None => self.walk_globs(file, &names[index..], depth).or(Some(Resolved::Item(file))),
            };
        }
        Some(Resolved::Module(module))
    }

    /// Looks for a name in the modules of which a file imports everything.
    fn walk_globs(&self, file: usize, names: &[String], depth: usize) -> Option<Resolved> {
        self.files[file].globs.iter().find_map(|glob| {
            let Resolved::Module(module) = self.resolve_in(file, glob, depth + 1)? else { return None };
            let target = &self.files[*self.by_module.get(&module)?];
            let is_known = target.items.contains(&names[0]) || target.bindings.contains_key(&names[0]);
            is_known.then(|| self.walk(module, names, depth + 1)).flatten()
        })
    }
}

fn child(module: &ModulePath, name: &str) -> ModulePath {
    let mut path = module.clone();
    path.push(name.to_owned());
    path
}
