//! Describes all calls in an OpenAPI document: the calls from their table, and the answers from the types that are
//! serialised. OpenAPI 3.1 uses JSON Schema 2020-12, so the schema of a type can be used unchanged.

use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::calls::Call;
use super::problem::Details;

/// Stands for `application/json` where it is the second of two content types. Client generators use the first type that they
/// know, which must be that of a request without `Accept`, and objects are written in the order of their keys.
const JSON_SECOND: &str = "application/~json";

/// The document for a gateway at this address.
pub(crate) fn text(calls: &[Call], server: &str) -> String {
    let mut document = document(calls);
    document["servers"] = json!([{ "url": server, "description": "This gateway" }]);
    document.to_string().replace(JSON_SECOND, "application/json")
}

fn document(calls: &[Call]) -> Value {
    let settings = SchemaSettings::draft2020_12().for_serialize().with(|settings| {
        settings.definitions_path = "/components/schemas".into();
        settings.meta_schema = None;
    });
    let mut generator = settings.into_generator();
    let problem = generator.subschema_for::<Details>();
    let mut paths: Map<String, Value> = Map::new();
    for call in calls {
        let path = paths.entry(call.path.replace("{*", "{")).or_insert_with(|| json!({}));
        path[call.method] = operation(call, &mut generator, problem.as_value());
    }
    let mut schemas = Value::Object(generator.take_definitions(true));
    in_plain_words(&mut schemas);
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "pigateway",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Topics, users and rules are those of the MQTT broker.",
            "license": { "name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0" },
        },
        "paths": paths,
        "security": [{ "basic": [] }, {}],
        "components": { "securitySchemes": { "basic": { "type": "http", "scheme": "basic" } }, "schemas": schemas },
    })
}

/// Converts a choice of words with explanations to a plain list of words, which every client generator can read.
fn list_words(object: &mut Map<String, Value>) {
    let choices = object.get("oneOf").and_then(Value::as_array);
    let words: Option<Vec<Value>> =
        choices.and_then(|choices| choices.iter().map(|choice| choice.get("const").cloned()).collect());
    let Some(words) = words else { return };
    let meaning = |choice: &Value| Some(format!("{}: {}", choice["const"].as_str()?, choice["description"].as_str()?));
    let meanings: Vec<String> = choices.into_iter().flatten().filter_map(meaning).collect();
    let own = object.get("description").and_then(Value::as_str).unwrap_or_default();
    let description = format!("{own} {}", meanings.join(" ")).trim().to_owned();
    object.remove("oneOf");
    object.insert("type".into(), "string".into());
    object.insert("enum".into(), words.into());
    object.insert("description".into(), description.into());
}

/// Removes the brackets around names in comments, which have a meaning only for rustdoc.
fn in_plain_words(value: &mut Value) {
    match value {
        Value::Object(object) => {
            list_words(object);
            if let Some(Value::String(description)) = object.get_mut("description") {
                *description = description.replace("[`", "`").replace("`]", "`");
            }
            object.values_mut().for_each(in_plain_words);
        }
        Value::Array(items) => items.iter_mut().for_each(in_plain_words),
        _ => {}
    }
}

fn parameters(call: &Call) -> Vec<Value> {
    let in_path = call.path.split(['{', '}']).skip(1).step_by(2).map(|name| {
        let name = name.trim_start_matches('*');
        json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } })
    });
    let in_query = call.query.iter().map(|parameter| {
        let schema = match parameter.kind {
            "strings" => json!({ "type": "array", "items": { "type": "string" } }),
            kind => json!({ "type": kind }),
        };
        json!({ "name": parameter.name, "in": "query", "description": parameter.meaning, "schema": schema })
    });
    in_path.chain(in_query).collect()
}

/// The schema of raw bytes.
fn bytes() -> Value {
    json!({ "schema": { "type": "string", "format": "binary" } })
}

fn operation(call: &Call, generator: &mut SchemaGenerator, problem: &Value) -> Value {
    let (status, kind) = call.success;
    let answer = call.answer.map(|schema| json!({ "schema": schema(generator) }));
    let mut success = json!({ "description": "Success" });
    match (kind, answer) {
        ("", _) => {}
        ("application/json", Some(answer)) => success["content"] = json!({ kind: answer }),
        ("application/octet-stream", Some(answer)) => {
            success["content"] = json!({ kind: bytes(), JSON_SECOND: answer });
        }
        _ => success["content"] = json!({ kind: { "schema": { "type": "string" } } }),
    }
    let refused =
        |why: &str| json!({ "description": why, "content": { "application/problem+json": { "schema": problem } } });
    let mut responses = json!({ status.to_string(): success, "default": refused("Another problem") });
    for (status, why) in call.refusals() {
        responses[status.to_string()] = refused(why);
    }
    let mut operation = json!({
        "operationId": call.id,
        "summary": call.summary,
        "parameters": parameters(call),
        "responses": responses,
    });
    if let Some(schema) = call.body {
        let content = json!({ "application/json": { "schema": schema(generator) } });
        operation["requestBody"] = json!({ "required": true, "content": content });
    }
    if call.takes_payload() {
        let content = json!({ "application/octet-stream": bytes() });
        operation["requestBody"] =
            json!({ "description": "The payload, of any content type", "required": true, "content": content });
    }
    if call.is_open {
        operation["security"] = json!([]);
    }
    operation
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::super::routes::CALLS;
    use super::*;

    #[test]
    fn every_call_is_described() {
        let document: Value = serde_json::from_str(&text(CALLS, "/pi")).unwrap();
        for call in CALLS {
            let operation = &document["paths"][call.path.replace("{*", "{")][call.method];
            assert_eq!((&operation["summary"], &operation["operationId"]), (&call.summary.into(), &call.id.into()));
            let json = &operation["responses"][call.success.0.to_string()]["content"]["application/json"];
            assert_eq!(json["schema"].is_object(), call.answer.is_some(), "{}", call.id);
        }
        assert_eq!(CALLS.iter().map(|call| call.id).collect::<HashSet<_>>().len(), CALLS.len());
        let publish = &document["paths"]["/api/v1/topics/{topic}"]["put"];
        assert_eq!(publish["parameters"][0]["name"], "topic");
        assert_eq!(publish["responses"]["204"]["description"], "Success");
        assert_eq!(document["paths"]["/api/v1/stream"]["get"]["parameters"][0]["schema"]["type"], "array");
        assert_eq!(document["servers"][0]["url"], "/pi");
        let sensor = &document["components"]["schemas"]["Sensor"]["properties"];
        assert!(sensor["pin"].is_object() && sensor["since"].is_object(), "{sensor}");
    }

    #[test]
    fn what_a_request_without_accept_gets_comes_first() {
        let text = text(CALLS, "/");
        let (_, read) = text.split_once("\"operationId\":\"read_message\"").unwrap();
        let place = |kind: &str| read.find(kind).unwrap();
        assert!(place("application/octet-stream") < place("application/json") && !text.contains(JSON_SECOND));
    }
}
