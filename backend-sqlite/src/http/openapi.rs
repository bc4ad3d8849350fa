//! `/openapi.json`: what the API takes and answers, taken from the handlers themselves, so that the two never differ.

use std::collections::BTreeSet;

use aide::OperationInput;
use aide::OperationOutput;
use aide::axum::ApiRouter;
use aide::generate::GenContext;
use aide::openapi::{
    Info, MediaType, OpenApi, Operation, Parameter, ParameterData, ParameterSchemaOrContent, PathStyle,
    ReferenceOr, Response, SchemaObject, SecurityScheme,
};
use aide::transform::TransformOperation;
use axum::Router;
use schemars::{JsonSchema, json_schema};

use crate::http::extract::{Body, Bytes, Optional, Path, Query};
use crate::http::identity::{Account, Administrator, Caller, Holder};
use crate::problem::Problem;

/// The name of the way in which a client proves who it is.
const BEARER: &str = "bearer";

/// Says in a line what an operation does.
pub(crate) fn summary(text: &'static str) -> impl FnOnce(TransformOperation<'_>) -> TransformOperation<'_> {
    move |operation| operation.summary(text)
}

/// The routes that `make` makes, and the description of those that are documented.
pub(crate) fn describe<S: Clone + Send + Sync + 'static>(
    make: impl FnOnce() -> ApiRouter<S>,
) -> (Router<S>, OpenApi) {
    let info = Info {
        title: "Palisade backend".to_owned(),
        description: Some("Accounts, roles, permissions and JSON records, behind the gateway.".to_owned()),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..Info::default()
    };
    let mut api = OpenApi { info, ..OpenApi::default() };
    aide::generate::extract_schemas(true); // before any route is made
    let described = make().finish_api_with(&mut api, |api| {
        let bearer = SecurityScheme::Http {
            scheme: BEARER.to_owned(),
            bearer_format: Some("JWT".to_owned()),
            description: Some("An access token, which the gateway verifies.".to_owned()),
            extensions: nothing(),
        };
        api.security_scheme(BEARER, bearer)
    });
    name_path_parameters(&mut api);
    (described, api)
}

fn nothing<T: Default>() -> T {
    T::default()
}

/// Every `{name}` of a path is a parameter of its operations, and `{*rest}` is written as `{rest}`.
fn name_path_parameters(api: &mut OpenApi) {
    let Some(paths) = &mut api.paths else { return };
    paths.paths = std::mem::take(&mut paths.paths)
        .into_iter()
        .map(|(path, mut item)| {
            let path = path.replace("{*", "{");
            let names: BTreeSet<String> = path
                .split('{')
                .skip(1)
                .filter_map(|rest| rest.split_once('}').map(|(name, _)| name.to_owned()))
                .collect();
            if let ReferenceOr::Item(item) = &mut item {
                item.parameters.extend(names.into_iter().map(|name| ReferenceOr::Item(path_parameter(name))));
            }
            (path, item)
        })
        .collect();
}

fn path_parameter(name: String) -> Parameter {
    let json_schema = json_schema!({"type": "string"});
    let schema = SchemaObject { json_schema, external_docs: None, example: None };
    Parameter::Path {
        parameter_data: ParameterData {
            name,
            description: None,
            required: true,
            deprecated: None,
            format: ParameterSchemaOrContent::Schema(schema),
            example: None,
            examples: nothing(),
            explode: None,
            extensions: nothing(),
        },
        style: PathStyle::Simple,
    }
}

fn needs_bearer(operation: &mut Operation) {
    operation.security = vec![[(BEARER.to_owned(), Vec::new())].into_iter().collect()];
}

impl<T: JsonSchema> OperationInput for Body<T> {
    fn operation_input(context: &mut GenContext, operation: &mut Operation) {
        <axum::Json<T> as OperationInput>::operation_input(context, operation);
    }
}

impl<T: JsonSchema> OperationInput for Optional<T> {
    fn operation_input(context: &mut GenContext, operation: &mut Operation) {
        <axum::Json<T> as OperationInput>::operation_input(context, operation);
        if let Some(ReferenceOr::Item(body)) = &mut operation.request_body {
            body.required = false;
        }
    }
}

impl OperationInput for Bytes {
    fn operation_input(context: &mut GenContext, operation: &mut Operation) {
        <axum::Json<serde_json::Value> as OperationInput>::operation_input(context, operation);
    }
}

impl<T: JsonSchema> OperationInput for Query<T> {
    fn operation_input(context: &mut GenContext, operation: &mut Operation) {
        <axum::extract::Query<T> as OperationInput>::operation_input(context, operation);
    }
}

impl<T> OperationInput for Path<T> {}

impl OperationInput for Caller {}

impl OperationInput for Account {
    fn operation_input(_: &mut GenContext, operation: &mut Operation) {
        needs_bearer(operation);
    }
}

impl OperationInput for Holder {
    fn operation_input(_: &mut GenContext, operation: &mut Operation) {
        needs_bearer(operation);
    }
}

impl OperationInput for Administrator {
    fn operation_input(_: &mut GenContext, operation: &mut Operation) {
        needs_bearer(operation);
    }
}

impl OperationOutput for Problem {
    type Inner = Self;

    fn operation_response(_: &mut GenContext, _: &mut Operation) -> Option<Response> {
        let json_schema = json_schema!({
            "type": "object",
            "required": ["type", "title", "status", "code", "detail", "request_id"],
            "properties": {
                "type": {"type": "string"},
                "title": {"type": "string"},
                "status": {"type": "integer"},
                "code": {"type": "string", "description": "What a program reads."},
                "detail": {"type": "string", "description": "What a person reads."},
                "request_id": {"type": "string"},
            },
        });
        let schema = Some(SchemaObject { json_schema, external_docs: None, example: None });
        let content = MediaType { schema, ..MediaType::default() };
        Some(Response {
            description: "A problem (RFC 9457).".to_owned(),
            content: [("application/problem+json".to_owned(), content)].into_iter().collect(),
            ..Response::default()
        })
    }

    fn inferred_responses(
        context: &mut GenContext,
        operation: &mut Operation,
    ) -> Vec<(Option<u16>, Response)> {
        Self::operation_response(context, operation).map(|response| (None, response)).into_iter().collect()
    }
}
