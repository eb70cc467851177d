//! Log set-up and metric handles; every metric name stands in this module.
