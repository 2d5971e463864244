//! The route table: the router, the OpenAPI document and `/capabilities` are all made from it, so a route cannot
//! exist without being described.

use std::time::Duration;

use axum::Router;
use axum::http::Method;
use axum::middleware;
use axum::routing::MethodRouter;
use serde_json::{Value, json};

use crate::access::{Access, OwnerRule};
use crate::guard;
use crate::rate::Group;
use crate::state::ApiState;

/// Part of the node that owns a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Feature {
    /// Health, status, discovery of the node itself.
    Core,
    /// Runtime processes.
    Sessions,
    /// Calls of the hook program.
    Hooks,
    /// The mesh.
    Threadline,
}

impl Feature {
    /// Every feature, in the order of `/capabilities`.
    pub const ALL: [Self; 4] = [Self::Core, Self::Sessions, Self::Hooks, Self::Threadline];

    /// Key in `/capabilities` and tag in the OpenAPI document.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Core => "core",
            Self::Sessions => "sessions",
            Self::Hooks => "hooks",
            Self::Threadline => "threadline",
        }
    }
}

/// One route.
#[derive(Clone)]
pub struct Route {
    /// Method.
    pub method: Method,
    /// Path with `{parameters}`.
    pub path: &'static str,
    /// Auth class.
    pub access: Access,
    /// Rate-limit group.
    pub group: Group,
    /// Time allowed for an answer; the configured default if absent.
    pub patience: Option<Duration>,
    /// Owner of the route.
    pub feature: Feature,
    /// One line for people.
    pub summary: &'static str,
    /// Schema of the JSON body, where there is one.
    pub body: Option<fn() -> Value>,
    /// Names of query parameters.
    pub query: &'static [&'static str],
    pub(crate) handler: MethodRouter<ApiState>,
}

impl Route {
    pub(crate) fn new(
        method: Method,
        path: &'static str,
        access: Access,
        summary: &'static str,
        handler: MethodRouter<ApiState>,
    ) -> Self {
        Self {
            method,
            path,
            access,
            group: Group::Default,
            patience: None,
            feature: Feature::Core,
            summary,
            body: None,
            query: &[],
            handler,
        }
    }

    pub(crate) fn group(mut self, group: Group) -> Self {
        self.group = group;
        self
    }

    pub(crate) fn patience(mut self, seconds: u64) -> Self {
        self.patience = Some(Duration::from_secs(seconds));
        self
    }

    pub(crate) fn body<T: schemars::JsonSchema>(mut self) -> Self {
        self.body = Some(|| schemars::schema_for!(T).to_value());
        self
    }

    pub(crate) fn query(mut self, names: &'static [&'static str]) -> Self {
        self.query = names;
        self
    }
}

/// Every route of this build.
pub fn table() -> Vec<Route> {
    use crate::handlers::{core, hooks, sessions, threadline};
    let tagged = |feature: Feature, routes: Vec<Route>| {
        routes.into_iter().map(move |route| Route { feature, ..route }).collect::<Vec<_>>()
    };
    let mut all = tagged(Feature::Core, core::routes());
    all.extend(tagged(Feature::Sessions, sessions::routes()));
    all.extend(tagged(Feature::Hooks, hooks::routes()));
    all.extend(tagged(Feature::Threadline, threadline::routes()));
    all
}

/// The router of the node, every route behind its guard.
pub fn router(state: &ApiState) -> Router {
    let mut router = Router::new();
    for route in table() {
        let rule = guard::Rule { access: route.access, group: route.group, patience: route.patience };
        let guarded = route
            .handler
            .clone()
            .route_layer(middleware::from_fn_with_state((state.clone(), rule), guard::route));
        router = router.route(route.path, guarded);
    }
    router
        .fallback(guard::unknown_route)
        .method_not_allowed_fallback(guard::wrong_method)
        .layer(middleware::from_fn_with_state(state.clone(), guard::surface))
        .with_state(state.clone())
}

/// The OpenAPI 3.1 document of exactly the routes in [`table`].
pub fn openapi(version: &str) -> Value {
    let mut paths = serde_json::Map::new();
    for route in table() {
        let item = paths.entry(route.path).or_insert_with(|| json!({}));
        if let Some(item) = item.as_object_mut() {
            item.insert(route.method.as_str().to_ascii_lowercase(), operation(&route));
        }
    }
    json!({
        "openapi": "3.1.0",
        "info": {"title": "Instar node", "version": version},
        "paths": paths,
        "components": {
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
            "schemas": {"Error": {
                "type": "object",
                "required": ["error", "code"],
                "properties": {"error": {"type": "string"}, "code": {"type": "string"}},
            }},
        },
    })
}

fn operation(route: &Route) -> Value {
    let error = json!({
        "description": "refused or failed",
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
    });
    let in_path = route.path.split('/').filter_map(|s| s.strip_prefix('{')?.strip_suffix('}'));
    let parameters: Vec<Value> = in_path
        .map(|name| json!({"name": name, "in": "path", "required": true, "schema": {"type": "string"}}))
        .chain(
            route.query.iter().map(|name| json!({"name": name, "in": "query", "schema": {"type": "string"}})),
        )
        .chain(crate::guard::changes_state(&route.method).then(
            || json!({"name": "Idempotency-Key", "in": "header", "schema": {"type": "string", "maxLength": 255}}),
        ))
        .collect();
    let mut operation = json!({
        "summary": route.summary,
        "tags": [route.feature.name()],
        "parameters": parameters,
        "x-instar-auth": route.access.to_string(),
        "responses": {"200": {"description": "done"}, "default": error},
    });
    if !route.access.public {
        operation["security"] = json!([{"bearer": []}]);
    }
    if route.access.owner != OwnerRule::No {
        operation["x-instar-owner"] = json!(route.access.owner == OwnerRule::Only);
    }
    if let Some(schema) = route.body {
        operation["requestBody"] = json!({"content": {"application/json": {"schema": schema()}}});
    }
    operation
}
