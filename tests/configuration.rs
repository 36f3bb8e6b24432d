//! Configuration files: what the schema knows is what is read, every slip is refused in words, and nothing at all panics.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use dsad::config::file::{RecipeFile, StationFile};
use dsad::config::recipe::load_recipe;
use dsad::config::schema::{of_recipe, of_station};
use dsad::config::station::load;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Map, Value};

use crate::support::{DSAD, run};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The two kinds of files, each with its schema and the shipped files.
type Load = fn(&Path) -> Result<(), String>;

fn kinds() -> [(Value, Vec<PathBuf>, Load); 2] {
    let recipes = std::fs::read_dir(root().join("configs/recipes")).expect("ships");
    let recipes = recipes.map(|entry| entry.expect("is there").path()).collect();
    [
        (of_station().to_value(), vec![root().join("configs/dsad.toml")], read_station),
        (of_recipe().to_value(), recipes, read_recipe),
    ]
}

fn read_station(path: &Path) -> Result<(), String> {
    load(path).map(drop).map_err(|error| error.to_string())
}

fn read_recipe(path: &Path) -> Result<(), String> {
    let all = |problems: Vec<_>| problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    load_recipe(path).map(drop).map_err(|problems: Vec<dsad::config::problem::Problem>| all(problems))
}

/// All that a schema may mean: itself without references, or each of its variants.
fn variants<'a>(schema: &'a Value, root: &'a Value) -> Vec<&'a Value> {
    if let Some(reference) = schema["$ref"].as_str() {
        let name = reference.strip_prefix("#/definitions/").expect("a definition");
        return variants(&root["definitions"][name], root);
    }
    for word in ["oneOf", "anyOf", "allOf"] {
        if let Some(all) = schema[word].as_array() {
            return all.iter().flat_map(|one| variants(one, root)).filter(|one| one["type"] != "null").collect();
        }
    }
    vec![schema]
}

/// Whether a value has only keys that the schema knows.
fn knows(schema: &Value, root: &Value, value: &toml::Value) -> bool {
    variants(schema, root).into_iter().any(|schema| match value {
        toml::Value::Table(table) => table.iter().all(|(key, value)| match &schema["properties"][key] {
            Value::Null => schema["additionalProperties"].is_object(),
            known => knows(known, root, value),
        }),
        toml::Value::Array(list) => list.iter().all(|value| knows(&schema["items"], root, value)),
        _ => true,
    })
}

/// Changes one row of a table.
type Changing = dyn Fn(&mut Vec<(String, Node)>, usize);

/// What is written under a key.
#[derive(Clone)]
enum Node {
    Leaf(String),
    List(Vec<Node>),
    Table(Vec<(String, Node)>),
}

impl Node {
    fn text(&self) -> String {
        match self {
            Node::Leaf(text) => text.clone(),
            Node::List(list) => format!("[{}]", list.iter().map(Node::text).collect::<Vec<_>>().join(", ")),
            Node::Table(rows) => {
                let rows: Vec<String> = rows.iter().map(|(key, node)| format!("{key} = {}", node.text())).collect();
                format!("{{ {} }}", rows.join(", "))
            }
        }
    }

    /// As a file: a key a line.
    fn file(&self) -> String {
        let Node::Table(rows) = self else { panic!("a file is a table") };
        rows.iter().map(|(key, node)| format!("{key} = {}\n", node.text())).collect()
    }

    /// Every file that differs from this one by `change` of one row, with the row's key.
    fn changed(&self, change: &Changing) -> Vec<(String, Node)> {
        match self {
            Node::Leaf(_) => Vec::new(),
            Node::List(list) => {
                let first = list.first().map(|node| node.changed(change)).unwrap_or_default();
                first.into_iter().map(|(key, node)| (key, Node::List(vec![node]))).collect()
            }
            Node::Table(rows) => {
                let mut all = Vec::new();
                for (index, (key, node)) in rows.iter().enumerate() {
                    let mut here = rows.clone();
                    change(&mut here, index);
                    all.push((key.clone(), Node::Table(here)));
                    for (below, node) in node.changed(change) {
                        let mut there = rows.clone();
                        there[index].1 = node;
                        all.push((format!("{key}.{below}"), Node::Table(there)));
                    }
                }
                all
            }
        }
    }
}

/// Words where not any will do.
const WORDS: [(&str, &str); 3] = [("device", "'cpu'"), ("format", "'GREY'"), ("steps", "'auto'")];

/// Texts that the schema allows: one with every key, and one more for every other way to write one of them.
fn samples(key: &str, schema: &Value, root: &Value) -> Vec<Node> {
    let sample = |schema: &Value| -> Vec<Node> {
        let kind = match &schema["type"] {
            Value::Array(kinds) => kinds.iter().find(|kind| *kind != "null").and_then(Value::as_str),
            kind => kind.as_str(),
        };
        if let Some(word) = schema.get("const").or_else(|| schema["enum"].get(0)) {
            return vec![Node::Leaf(word.to_string())];
        }
        match kind.unwrap_or_else(|| panic!("{key}: {schema}")) {
            "string" => {
                let word = WORDS.iter().find(|(known, _)| *known == key).map_or("'word'", |(_, word)| word);
                vec![Node::Leaf(word.into())]
            }
            "integer" => vec![Node::Leaf("1".into())],
            "number" => vec![Node::Leaf("0.5".into())],
            "boolean" => vec![Node::Leaf("true".into())],
            "array" => {
                let count = schema["minItems"].as_u64().unwrap_or(1) as usize;
                samples(key, &schema["items"], root).into_iter().map(|one| Node::List(vec![one; count])).collect()
            }
            "object" => {
                let empty = Map::new();
                let properties = schema["properties"].as_object().unwrap_or(&empty);
                let mut rows: Vec<(String, Vec<Node>)> =
                    properties.iter().map(|(key, schema)| (key.clone(), samples(key, schema, root))).collect();
                if schema["additionalProperties"].is_object() {
                    rows.push(("any".into(), samples("any", &schema["additionalProperties"], root)));
                }
                let first: Vec<_> = rows.iter().map(|(key, all)| (key.clone(), all[0].clone())).collect();
                let mut all = vec![Node::Table(first.clone())];
                for (index, (_, others)) in rows.iter().enumerate() {
                    for other in &others[1..] {
                        let mut rows = first.clone();
                        rows[index].1 = other.clone();
                        all.push(Node::Table(rows));
                    }
                }
                all
            }
            other => panic!("{key}: {other}"),
        }
    };
    variants(schema, root).into_iter().flat_map(sample).collect()
}

#[test]
fn what_ships_is_what_the_schema_knows() {
    for (schema, files, _) in kinds() {
        for file in files {
            let text = std::fs::read_to_string(&file).expect("ships");
            let value: toml::Value = toml::from_str(&text).expect("is TOML");
            assert!(knows(&schema, &schema, &value), "{}", file.display());
            let toml::Value::Table(mut table) = value else { panic!("a table") };
            table.insert("sensitivty".into(), 1.into());
            assert!(!knows(&schema, &schema, &toml::Value::Table(table)), "{}", file.display());
        }
    }
}

#[test]
fn every_key_is_described_and_every_sample_is_read() {
    fn described(path: &str, schema: &Value, root: &Value) {
        for variant in variants(schema, root) {
            let empty = Map::new();
            for (key, below) in variant["properties"].as_object().unwrap_or(&empty) {
                let path = format!("{path}.{key}");
                // The word that says which variant it is; the variant has its own description.
                let said = if below.get("const").is_some() { &variant["description"] } else { &below["description"] };
                assert!(said.as_str().is_some_and(|text| text.len() > 5), "{path}: {below}");
                assert_eq!(variant["additionalProperties"], Value::Bool(false), "{path}");
                described(&path, below, root);
            }
            if variant["items"].is_object() {
                described(path, &variant["items"], root);
            }
        }
    }
    let [(station, ..), (recipe, ..)] = kinds();
    for (schema, kind) in [(&station, "station"), (&recipe, "recipe")] {
        described(kind, schema, schema);
        let all = samples("", schema, schema);
        assert!(!all.is_empty());
        for sample in all {
            let text = sample.file();
            let read = match kind {
                "station" => toml::from_str::<StationFile>(&text).map(drop),
                _ => toml::from_str::<RecipeFile>(&text).map(drop),
            };
            read.unwrap_or_else(|error| panic!("{error}{text}"));
        }
    }
}

#[test]
fn the_program_prints_both_schemas() {
    for (flag, expected) in [(None, of_station()), (Some("--recipe"), of_recipe())] {
        let args: Vec<&str> = ["config-schema"].into_iter().chain(flag).collect();
        let (code, out, error) = run(DSAD, &args, &root());
        assert_eq!(code, 0, "{error}");
        assert_eq!(serde_json::from_str::<Value>(&out).expect("JSON"), expected.to_value());
    }
}

#[test]
fn every_slip_is_refused_with_its_place_and_what_was_meant() {
    let dir = tempfile::tempdir().expect("directory");
    let file = dir.path().join("written.toml");
    let misspelt = |rows: &mut Vec<(String, Node)>, at: usize| rows[at].0.push('x');
    let retyped = |rows: &mut Vec<(String, Node)>, at: usize| {
        let other = if matches!(&rows[at].1, Node::Leaf(text) if text == "true") { "'word'" } else { "true" };
        rows[at].1 = Node::Leaf(other.into());
    };
    let doubled = |rows: &mut Vec<(String, Node)>, at: usize| rows.push(rows[at].clone());
    let mut slips = 0;
    for (schema, _, read) in kinds() {
        for sample in samples("", &schema, &schema) {
            let wrong = [("misspelt", sample.changed(&misspelt)), ("of another type", sample.changed(&retyped))];
            for (what, all) in wrong.into_iter().chain([("twice", sample.changed(&doubled))]) {
                for (key, node) in all {
                    // Names that the operator gives: any is right.
                    if what == "misspelt" && key.ends_with("controls.any") {
                        continue;
                    }
                    let text = node.file();
                    std::fs::write(&file, &text).expect("writes");
                    let Err(error) = read(&file) else { panic!("{key} {what} is taken:\n{text}") };
                    assert!(error.contains("written.toml: TOML parse error at line "), "{key} {what}: {error}");
                    assert!(error.contains(", column "), "{key} {what}: {error}");
                    assert!(what != "misspelt" || error.contains("did you mean '"), "{key} {what}: {error}");
                    slips += 1;
                }
            }
        }
    }
    assert!(slips > 300, "{slips}");
}

/// How many texts are tried: 100,000 by hand.
fn mutated_texts() -> usize {
    std::env::var("DSAD_MUTATED_CONFIGS").ok().and_then(|count| count.parse().ok()).unwrap_or(2_000)
}

/// Bytes that mean something in TOML, and some that mean nothing anywhere.
const PIECES: [&[u8]; 14] = [
    b"[",
    b"]",
    b"{ ",
    b" }",
    b"\"",
    b"'''",
    b"=",
    b"\n",
    b".",
    b"[[cameras]]\n",
    b"99999999999999999999",
    b"nan",
    b"\xff\xfe",
    b"\x00",
];

fn mutate(text: &mut Vec<u8>, rng: &mut ChaCha8Rng) {
    let at = rng.random_range(0..=text.len());
    match rng.random_range(0..7) {
        0 if at < text.len() => text[at] = rng.random(),
        1 if at < text.len() => drop(text.remove(at)),
        2 => drop(text.splice(at..at, PIECES[rng.random_range(0..PIECES.len())].iter().copied())),
        3 => text.truncate(at),
        // A piece of itself somewhere else.
        4 => {
            let from = rng.random_range(0..=text.len());
            let to = rng.random_range(from..=text.len().min(from + 60));
            let piece = text[from..to].to_vec();
            drop(text.splice(at..at, piece));
        }
        5 => {
            let many = rng.random_range(1..2_000);
            let piece = PIECES[rng.random_range(0..4)].repeat(many);
            drop(text.splice(at..at, piece));
        }
        // A comment of the shipped file becomes a key.
        _ => {
            if let Some(mark) = text[at..].windows(3).position(|three| three == b"\n# ") {
                drop(text.drain(at + mark + 1..at + mark + 3));
            }
        }
    }
}

#[test]
fn mutated_texts_are_read_or_refused_by_name() {
    let dir = tempfile::tempdir().expect("directory");
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    let (mut taken, mut refused, mut longest) = (0, 0, Duration::ZERO);
    let sound: Vec<(Vec<Vec<u8>>, PathBuf, _)> = kinds()
        .into_iter()
        .zip(["dsad.toml", "recipe.toml"])
        .map(|((schema, files, read), name)| {
            let shipped = files.iter().map(|file| std::fs::read(file).expect("ships"));
            let written = samples("", &schema, &schema).into_iter().map(|sample| sample.file().into_bytes());
            (shipped.chain(written).collect(), dir.path().join(name), read)
        })
        .collect();
    // The shipped station names it.
    std::fs::create_dir(dir.path().join("recipes")).expect("directory");
    std::fs::copy(root().join("configs/recipes/washer.toml"), dir.path().join("recipes/washer.toml")).expect("copies");
    for round in 0..mutated_texts() {
        let (texts, file, read) = &sound[round % sound.len()];
        let shipped = rng.random_bool(0.5);
        let mut text = texts[if shipped { 0 } else { rng.random_range(0..texts.len()) }].clone();
        for _ in 0..rng.random_range(0..4) {
            mutate(&mut text, &mut rng);
        }
        std::fs::write(file, &text).expect("writes");
        let started = Instant::now();
        let outcome = std::panic::catch_unwind(|| read(file));
        longest = longest.max(started.elapsed());
        match outcome {
            Ok(Ok(())) => taken += 1,
            Ok(Err(error)) => {
                let names = |line: &str| line.starts_with(&*dir.path().to_string_lossy());
                assert!(error.lines().next().is_some_and(names), "{error}");
                refused += 1;
            }
            Err(_) => panic!("round {round} panicked:\n{}", String::from_utf8_lossy(&text)),
        }
    }
    eprintln!("{taken} texts read, {refused} refused, the longest took {longest:?}");
    assert!(taken > 0 && refused > 0);
    assert!(longest < Duration::from_secs(30), "{longest:?}");
}

#[test]
fn what_never_ends_is_no_configuration() {
    let dir = tempfile::tempdir().expect("directory");
    for (path, words) in [("/dev/zero", "no file"), ("/dev", "no file"), ("/none", "cannot be read")] {
        let error = read_station(Path::new(path)).expect_err("refused");
        assert!(error.starts_with(path) && error.contains(words), "{error}");
    }
    let long = dir.path().join("long.toml");
    std::fs::write(&long, "# \n".repeat(1 << 19)).expect("writes");
    assert!(read_station(&long).expect_err("refused").contains("longer than"));
}
