//! The projections of a decoder layer, and their names in the file formats. Knows no sizes and no weights.

use serde::{Deserialize, Serialize};

/// Projections of a decoder layer that can have LoRA matrices. The names are those of Hugging Face's Llama.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Projection {
    /// Attention: queries.
    QProj,
    /// Attention: keys.
    KProj,
    /// Attention: values.
    VProj,
    /// Attention: output.
    OProj,
    /// Feed-forward: gate.
    GateProj,
    /// Feed-forward: up.
    UpProj,
    /// Feed-forward: down.
    DownProj,
}

impl Projection {
    /// All projections of a layer, in the order of their application.
    pub const ALL: [Projection; 7] = [
        Projection::QProj,
        Projection::KProj,
        Projection::VProj,
        Projection::OProj,
        Projection::GateProj,
        Projection::UpProj,
        Projection::DownProj,
    ];

    /// The name of the projection's module within a layer.
    pub fn module_name(self) -> &'static str {
        match self {
            Projection::QProj => "self_attn.q_proj",
            Projection::KProj => "self_attn.k_proj",
            Projection::VProj => "self_attn.v_proj",
            Projection::OProj => "self_attn.o_proj",
            Projection::GateProj => "mlp.gate_proj",
            Projection::UpProj => "mlp.up_proj",
            Projection::DownProj => "mlp.down_proj",
        }
    }
}
