//! The description of all calls as an OpenAPI document, from their table.

use serde_json::{Map, Value, json};

use super::calls::Call;

/// Describes these calls.
pub fn document(calls: &[Call]) -> Value {
    let mut paths: Map<String, Value> = Map::new();
    for call in calls {
        let path = paths.entry(call.path.replace("{*", "{")).or_insert_with(|| json!({}));
        path[call.method] = operation(call);
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "pigateway",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Topics, users and rules are those of the MQTT broker.",
        },
        "paths": paths,
        "security": [{ "basic": [] }, {}],
        "components": {
            "securitySchemes": { "basic": { "type": "http", "scheme": "basic" } },
            "schemas": { "Problem": {
                "type": "object",
                "description": "RFC 9457",
                "required": ["type", "title", "status", "detail"],
                "properties": {
                    "type": { "type": "string" },
                    "title": { "type": "string" },
                    "status": { "type": "integer" },
                    "detail": { "type": "string" },
                },
            }},
        },
    })
}

fn operation(call: &Call) -> Value {
    let in_path = call.path.split(['{', '}']).skip(1).step_by(2).map(|name| {
        let name = name.trim_start_matches('*');
        json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } })
    });
    let in_query = call.query.iter().map(|parameter| {
        json!({
            "name": parameter.name,
            "in": "query",
            "description": parameter.meaning,
            "schema": { "type": parameter.kind },
        })
    });
    let parameters: Vec<Value> = in_path.chain(in_query).collect();
    let (status, kind) = call.success;
    let mut success = json!({ "description": "Success" });
    if !kind.is_empty() {
        success["content"] = json!({ kind: {} });
    }
    let problem = json!({
        "description": "Problem",
        "content": { "application/problem+json": { "schema": { "$ref": "#/components/schemas/Problem" } } },
    });
    let mut operation = json!({
        "summary": call.summary,
        "parameters": parameters,
        "responses": { status.to_string(): success, "default": problem },
    });
    if matches!(call.method, "put" | "post") {
        operation["requestBody"] = json!({ "description": "The payload", "content": { "*/*": {} } });
    }
    if call.is_open {
        operation["security"] = json!([]);
    }
    operation
}

#[cfg(test)]
mod tests {
    use super::super::routes::CALLS;
    use super::*;

    #[test]
    fn every_call_is_described() {
        let document = document(CALLS);
        for call in CALLS {
            let operation = &document["paths"][call.path.replace("{*", "{")][call.method];
            assert_eq!(operation["summary"], call.summary);
        }
        let publish = &document["paths"]["/api/v1/topics/{topic}"]["put"];
        assert_eq!(publish["parameters"][0]["name"], "topic");
        assert_eq!(publish["responses"]["204"]["description"], "Success");
    }
}
