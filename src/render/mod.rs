//! Drawings for people: heat maps on one fixed scale, and annotated pictures. Pure; bytes in, bytes out.
//!
//! A map is never scaled by its own range: a good part must not look red because it is the best of its kind.

pub mod encode;
mod font;
pub mod heat;
pub mod panel;
