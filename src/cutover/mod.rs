//! The switch: prepare, close the gate, drain, fence, commit, open.
