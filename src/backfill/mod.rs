//! The snapshot loader: RESTORE by boundary scan, commands where RESTORE cannot serve.
