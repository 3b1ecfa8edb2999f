//! What a simulated device has, and the numbers of the attributes by which a program asks for it. The limits
//! are those of an H100 unless a comment says otherwise. Must not know the state of any device.

/// `CUdevice_attribute`, by NVIDIA's names without `CU_DEVICE_ATTRIBUTE_`. Source: cuda.h of CUDA 12.8.
pub(super) mod attribute {
    macro_rules! attributes {
        ($($name:ident = $number:literal;)*) => {
            $(pub(in super::super) const $name: u32 = $number;)*

            #[cfg(test)]
            pub(super) const ALL: &[(&str, u32)] = &[$((stringify!($name), $number),)*];
        };
    }

    attributes! {
        MAX_THREADS_PER_BLOCK = 1;
        MAX_BLOCK_DIM_X = 2;
        MAX_BLOCK_DIM_Y = 3;
        MAX_BLOCK_DIM_Z = 4;
        MAX_GRID_DIM_X = 5;
        MAX_GRID_DIM_Y = 6;
        MAX_GRID_DIM_Z = 7;
        MAX_SHARED_MEMORY_PER_BLOCK = 8;
        TOTAL_CONSTANT_MEMORY = 9;
        WARP_SIZE = 10;
        MAX_REGISTERS_PER_BLOCK = 12;
        CLOCK_RATE = 13;
        TEXTURE_ALIGNMENT = 14;
        MULTIPROCESSOR_COUNT = 16;
        CONCURRENT_KERNELS = 31;
        ECC_ENABLED = 32;
        PCI_BUS_ID = 33;
        PCI_DEVICE_ID = 34;
        MEMORY_CLOCK_RATE = 36;
        GLOBAL_MEMORY_BUS_WIDTH = 37;
        L2_CACHE_SIZE = 38;
        MAX_THREADS_PER_MULTIPROCESSOR = 39;
        ASYNC_ENGINE_COUNT = 40;
        UNIFIED_ADDRESSING = 41;
        PCI_DOMAIN_ID = 50;
        COMPUTE_CAPABILITY_MAJOR = 75;
        COMPUTE_CAPABILITY_MINOR = 76;
        MAX_SHARED_MEMORY_PER_MULTIPROCESSOR = 81;
        MAX_REGISTERS_PER_MULTIPROCESSOR = 82;
        MAX_SHARED_MEMORY_PER_BLOCK_OPTIN = 97;
        MAX_BLOCKS_PER_MULTIPROCESSOR = 106;
        MEMORY_POOLS_SUPPORTED = 115;
    }
}

pub(super) const MAX_THREADS_PER_BLOCK: u32 = 1024;
pub(super) const MAX_BLOCK_Z: u32 = 64;
pub(super) const MAX_GRID_X: u32 = i32::MAX as u32;
pub(super) const MAX_GRID_YZ: u32 = 65_535;
pub(super) const WARP_LANES: i32 = 32;
/// Shared memory of a block, unless its function asks for more.
pub(super) const DEFAULT_SHARED_BYTES: usize = 49_152;
pub(super) const SHARED_BYTES_PER_MULTIPROCESSOR: usize = 233_472;
/// Shared memory that the system takes for each block.
pub(super) const RESERVED_SHARED_BYTES_PER_BLOCK: usize = 1024;
pub(super) const MAX_THREADS_PER_MULTIPROCESSOR: i32 = 2048;
pub(super) const MAX_BLOCKS_PER_MULTIPROCESSOR: i32 = 32;
const CONSTANT_BYTES: i32 = 65_536;
const REGISTERS: i32 = 65_536;
/// The simulation has fewer than an H100, because programs launch more blocks for more of them.
pub(super) const MULTIPROCESSORS: i32 = 8;
const CLOCK_KHZ: i32 = 1_500_000;
const TEXTURE_ALIGNMENT_BYTES: i32 = 512;
const BUS_WIDTH_BITS: i32 = 5120;
const L2_CACHE_BYTES: i32 = 50 << 20;

/// A compute capability, such as 9.0.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ComputeCapability {
    pub(crate) major: i32,
    pub(crate) minor: i32,
}

/// Returns the maximum dynamic shared memory of a block in bytes, by compute capability. Source: the CUDA C
/// guide.
pub(super) fn max_dynamic_shared_bytes(capability: ComputeCapability) -> usize {
    match (capability.major, capability.minor) {
        (9 | 10, _) => 232_448,
        (8, 0 | 7) => 166_912,
        (8 | 12, _) => 101_376,
        (7, 5) => 65_536,
        (7, _) => 98_304,
        _ => DEFAULT_SHARED_BYTES,
    }
}

/// Returns the value of an attribute of a device. Attributes that are not listed are 0.
pub(super) fn device_attribute(number: u32, device: usize, capability: ComputeCapability) -> i32 {
    match number {
        attribute::MAX_THREADS_PER_BLOCK | attribute::MAX_BLOCK_DIM_X | attribute::MAX_BLOCK_DIM_Y => {
            MAX_THREADS_PER_BLOCK as i32
        }
        attribute::MAX_BLOCK_DIM_Z => MAX_BLOCK_Z as i32,
        attribute::MAX_GRID_DIM_X => MAX_GRID_X as i32,
        attribute::MAX_GRID_DIM_Y | attribute::MAX_GRID_DIM_Z => MAX_GRID_YZ as i32,
        attribute::MAX_SHARED_MEMORY_PER_BLOCK => DEFAULT_SHARED_BYTES as i32,
        attribute::MAX_SHARED_MEMORY_PER_BLOCK_OPTIN => max_dynamic_shared_bytes(capability) as i32,
        attribute::MAX_SHARED_MEMORY_PER_MULTIPROCESSOR => SHARED_BYTES_PER_MULTIPROCESSOR as i32,
        attribute::TOTAL_CONSTANT_MEMORY => CONSTANT_BYTES,
        attribute::WARP_SIZE => WARP_LANES,
        attribute::MAX_REGISTERS_PER_BLOCK | attribute::MAX_REGISTERS_PER_MULTIPROCESSOR => REGISTERS,
        attribute::CLOCK_RATE | attribute::MEMORY_CLOCK_RATE => CLOCK_KHZ,
        attribute::TEXTURE_ALIGNMENT => TEXTURE_ALIGNMENT_BYTES,
        attribute::MULTIPROCESSOR_COUNT => MULTIPROCESSORS,
        attribute::MAX_THREADS_PER_MULTIPROCESSOR => MAX_THREADS_PER_MULTIPROCESSOR,
        attribute::MAX_BLOCKS_PER_MULTIPROCESSOR => MAX_BLOCKS_PER_MULTIPROCESSOR,
        attribute::GLOBAL_MEMORY_BUS_WIDTH => BUS_WIDTH_BITS,
        attribute::L2_CACHE_SIZE => L2_CACHE_BYTES,
        attribute::CONCURRENT_KERNELS
        | attribute::ASYNC_ENGINE_COUNT
        | attribute::UNIFIED_ADDRESSING
        | attribute::ECC_ENABLED
        | attribute::MEMORY_POOLS_SUPPORTED => 1,
        attribute::PCI_BUS_ID => device as i32 + 1,
        attribute::PCI_DEVICE_ID | attribute::PCI_DOMAIN_ID => 0,
        attribute::COMPUTE_CAPABILITY_MAJOR => capability.major,
        attribute::COMPUTE_CAPABILITY_MINOR => capability.minor,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use cudarc::driver::sys::CUdevice_attribute_enum;

    use super::*;

    /// The names and numbers of cudarc, which are generated from cuda.h.
    #[test]
    fn attributes_have_the_numbers_of_cuda_h() {
        let last = CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED;
        assert_eq!(attribute::MEMORY_POOLS_SUPPORTED, last as u32);
        let opt_in = CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
        assert_eq!(attribute::MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, opt_in as u32);
        let clock = CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE;
        assert_eq!(attribute::MEMORY_CLOCK_RATE, clock as u32);
        assert!(attribute::ALL.windows(2).all(|pair| pair[0].1 < pair[1].1), "{:?}", attribute::ALL);
    }
}
