//! What every transport must do, as a suite that runs against any of them.
