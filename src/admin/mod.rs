//! The HTTP side: control API, metrics, dashboard.
