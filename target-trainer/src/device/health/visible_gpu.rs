//! Which GPU of the machine is the one that CUDA numbers: `CUDA_VISIBLE_DEVICES` hides and reorders GPUs from
//! CUDA, but not from NVML. Reads no GPU.

/// What NVML finds a GPU by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GpuSelector {
    /// Its number among all GPUs, in the order of their PCI bus.
    Index(u32),
    /// The begin of its UUID: `GPU-..`, or `MIG-..` for a part of one.
    Uuid(String),
}

/// The GPU that CUDA calls `ordinal`, if CUDA numbers GPUs in the order of their PCI bus. `visible` is the
/// value of `CUDA_VISIBLE_DEVICES`. `None` if CUDA sees no such GPU.
pub fn visible_gpu(ordinal: usize, visible: Option<&str>) -> Option<GpuSelector> {
    let Some(visible) = visible else { return u32::try_from(ordinal).ok().map(GpuSelector::Index) };
    let entry = |text: &str| match text.trim() {
        // An earlier notation: the GPU, and numbers of the part.
        mig if mig.starts_with("MIG-GPU-") => {
            let uuid = mig.trim_start_matches("MIG-").split('/').next();
            uuid.map(|uuid| GpuSelector::Uuid(uuid.to_owned()))
        }
        uuid if uuid.starts_with("GPU-") || uuid.starts_with("MIG-") => {
            Some(GpuSelector::Uuid(uuid.to_owned()))
        }
        number => number.parse().ok().map(GpuSelector::Index),
    };
    // CUDA ignores what comes after an entry that it does not know, such as `-1`.
    visible.split(',').map_while(entry).nth(ordinal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_is_looked_up_in_the_list_of_visible_gpus() {
        let uuid = |text: &str| Some(GpuSelector::Uuid(text.into()));
        let index = |number| Some(GpuSelector::Index(number));
        assert_eq!(visible_gpu(2, None), index(2));
        assert_eq!(visible_gpu(0, Some("3")), index(3));
        assert_eq!(visible_gpu(1, Some("3, 1,0")), index(1));
        assert_eq!(visible_gpu(1, Some("3")), None);
        assert_eq!(visible_gpu(0, Some("")), None);
        assert_eq!(visible_gpu(1, Some("0,-1,1")), None);
        assert_eq!(visible_gpu(2, Some("0,-1,1")), None);
        assert_eq!(visible_gpu(0, Some("GPU-8932f937")), uuid("GPU-8932f937"));
        assert_eq!(visible_gpu(1, Some("2,MIG-0a1b")), uuid("MIG-0a1b"));
        assert_eq!(visible_gpu(0, Some("MIG-GPU-8932f937/1/0")), uuid("GPU-8932f937"));
    }
}
