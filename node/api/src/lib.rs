//! HTTP routes of the node, credentials and OpenAPI.
