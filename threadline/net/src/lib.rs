//! Carries Threadline over sockets and keeps its store.
