//! Labs in network namespaces.
