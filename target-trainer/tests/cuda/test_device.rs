//! Test support: a device with random inputs and poisoned outputs. Every output is filled with NaN before a
//! kernel writes it, so that missing writes are detected.

use std::sync::{Arc, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

use target_trainer::device::WaitTracker;
use target_trainer::device::cuda::{CudaDevice, DeviceBuffer, ElementType, MatrixView};

/// Byte of poisoned buffers: all bits set is NaN in f32 and bf16.
pub(crate) const POISON: u8 = 0xff;

/// The seed of this run, the same for all tests.
pub(crate) fn seed() -> u64 {
    static SEED: OnceLock<u64> = OnceLock::new();
    *SEED.get_or_init(|| {
        let from_environment = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok());
        let from_clock = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
        let seed = from_environment.unwrap_or_else(from_clock);
        eprintln!("SEED={seed}");
        seed
    })
}

/// Pseudo-random numbers (SplitMix64).
pub(crate) struct TestRandom(u64);

impl TestRandom {
    pub(crate) fn new(salt: u64) -> TestRandom {
        TestRandom(seed() ^ salt.wrapping_mul(0x9E37_79B9_7F4A_7C15))
    }

    /// A random 64-bit number.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A random number less than `end`.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// Between -1 and 1.
    pub(crate) fn floats(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0).collect()
    }
}

/// The device, with one element type.
pub(crate) struct TestDevice {
    pub(crate) device: Arc<CudaDevice>,
    pub(crate) element: ElementType,
}

/// Returns the device that all tests share. The primary context exists once for each process.
pub(crate) fn device() -> Arc<CudaDevice> {
    static DEVICE: OnceLock<Arc<CudaDevice>> = OnceLock::new();
    let device = DEVICE.get_or_init(|| CudaDevice::new(0, Arc::new(WaitTracker::default())).unwrap());
    device.bind().unwrap();
    Arc::clone(device)
}

/// Runs the test with f32, then with bf16.
pub(crate) fn for_both_types(test: impl Fn(&TestDevice)) {
    for element in [ElementType::F32, ElementType::Bf16] {
        test(&TestDevice { device: device(), element });
    }
}

fn to_bf16_bits(value: f32) -> u16 {
    let bits = value.to_bits();
    (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

impl TestDevice {
    /// Rounds values to the element type.
    pub(crate) fn quantized(&self, values: Vec<f32>) -> Vec<f32> {
        match self.element {
            ElementType::Bf16 => {
                values.iter().map(|value| f32::from_bits(u32::from(to_bf16_bits(*value)) << 16)).collect()
            }
            _ => values,
        }
    }

    /// Uploads values as this device's element type.
    pub(crate) fn upload(&self, values: &[f32]) -> DeviceBuffer {
        let bytes: Vec<u8> = match self.element {
            ElementType::Bf16 => values.iter().flat_map(|value| to_bf16_bits(*value).to_ne_bytes()).collect(),
            _ => values.iter().flat_map(|value| value.to_ne_bytes()).collect(),
        };
        self.upload_bytes(self.element, &bytes)
    }

    pub(crate) fn upload_f32(&self, values: &[f32]) -> DeviceBuffer {
        self.upload_bytes(
            ElementType::F32,
            &values.iter().flat_map(|value| value.to_ne_bytes()).collect::<Vec<_>>(),
        )
    }

    pub(crate) fn upload_u32(&self, values: &[u32]) -> DeviceBuffer {
        self.upload_bytes(
            ElementType::Bits32,
            &values.iter().flat_map(|value| value.to_ne_bytes()).collect::<Vec<_>>(),
        )
    }

    fn upload_bytes(&self, element: ElementType, bytes: &[u8]) -> DeviceBuffer {
        let buffer = self.device.buffer(element, bytes.len() / element.size_bytes()).unwrap();
        self.device.upload(&buffer, 0, bytes).unwrap();
        buffer
    }

    /// A buffer filled with NaN.
    pub(crate) fn poisoned_buffer(&self, element: ElementType, len: usize) -> DeviceBuffer {
        let buffer = self.device.buffer(element, len).unwrap();
        self.device.fill(&buffer, POISON).unwrap();
        buffer
    }

    /// A poisoned buffer of this device's element type.
    pub(crate) fn output_buffer(&self, len: usize) -> DeviceBuffer {
        self.poisoned_buffer(self.element, len)
    }

    /// Downloads a buffer as f32.
    pub(crate) fn download(&self, buffer: &DeviceBuffer) -> Vec<f32> {
        let bytes = self.device.download(buffer).unwrap();
        match buffer.element() {
            ElementType::Bf16 => {
                let pairs = bytes.as_chunks::<2>().0.iter();
                pairs.map(|pair| f32::from_bits(u32::from(u16::from_ne_bytes(*pair)) << 16)).collect()
            }
            _ => bytes.as_chunks::<4>().0.iter().map(|word| f32::from_ne_bytes(*word)).collect(),
        }
    }

    /// Asserts that the norm of the difference is at most 1e-5 for f32 and 2e-2 for bf16, relative to `expected`.
    pub(crate) fn assert_near(&self, name: &str, found: &[f32], expected: &[f32]) {
        self.assert_near_for_terms(name, found, expected, expected);
    }

    /// As [`TestDevice::assert_near`], relative to the largest `terms` of the sums in `expected`. A GPU rounds
    /// each product and sum once, so a sum whose terms cancel is only as exact as its terms.
    pub(crate) fn assert_near_for_terms(&self, name: &str, found: &[f32], expected: &[f32], terms: &[f32]) {
        assert_eq!(found.len(), expected.len(), "{name}");
        let norm = |values: &mut dyn Iterator<Item = f32>| {
            values.map(|value| f64::from(value) * f64::from(value)).sum::<f64>().sqrt()
        };
        let difference = norm(&mut found.iter().zip(expected).map(|(a, b)| a - b));
        let distance = difference / norm(&mut terms.iter().copied()).max(1e-30);
        let tolerance = if self.element == ElementType::Bf16 { 2e-2 } else { 1e-5 };
        assert!(
            distance <= tolerance,
            "{name}, {:?}: the distance is {distance:e}, the tolerance {tolerance:e}",
            self.element
        );
    }
}

/// A matrix with padding between its rows. Kernels must not write the padding.
pub(crate) struct PaddedMatrix {
    pub(crate) buffer: DeviceBuffer,
    rows: usize,
    cols: usize,
    ld: usize,
}

impl PaddedMatrix {
    /// A poisoned matrix.
    pub(crate) fn output(gpu: &TestDevice, rows: usize, cols: usize, padding: usize) -> PaddedMatrix {
        PaddedMatrix { buffer: gpu.output_buffer(rows * (cols + padding)), rows, cols, ld: cols + padding }
    }

    /// Uploads rows and fills the padding with NaN.
    pub(crate) fn upload(gpu: &TestDevice, values: &[f32], rows: usize, padding: usize) -> PaddedMatrix {
        let cols = values.len() / rows;
        let padded: Vec<f32> = values
            .chunks_exact(cols)
            .flat_map(|row| row.iter().copied().chain(std::iter::repeat_n(f32::NAN, padding)))
            .collect();
        PaddedMatrix { buffer: gpu.upload(&padded), rows, cols, ld: cols + padding }
    }

    /// The matrix without its padding.
    pub(crate) fn matrix(&self) -> MatrixView<'_> {
        MatrixView::with_ld(self.buffer.view(), self.rows, self.cols, self.ld)
    }

    /// Downloads the rows. Asserts that the padding is unchanged.
    pub(crate) fn download(&self, gpu: &TestDevice) -> Vec<f32> {
        let all = gpu.download(&self.buffer);
        let (mut rows, mut padding) = (Vec::new(), Vec::new());
        for row in all.chunks_exact(self.ld) {
            rows.extend_from_slice(&row[..self.cols]);
            padding.extend_from_slice(&row[self.cols..]);
        }
        assert!(padding.iter().all(|value| value.is_nan()), "a kernel wrote the padding between rows");
        rows
    }
}
