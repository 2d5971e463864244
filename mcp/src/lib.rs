//! The MCP server with the eleven Threadline tools.
