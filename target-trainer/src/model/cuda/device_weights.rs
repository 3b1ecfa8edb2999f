//! The frozen weights on a CUDA device, the copies of the adapter between them, and their checksum. Computes
//! no pass.

use std::sync::Arc;

use super::frozen_layout::FrozenLayout;
use crate::device::cuda::{BufferView, CudaDevice, DeviceBuffer, ElementType};
use crate::device::{DeviceError, Precision};
use crate::model::base::BaseModel;
use crate::model::config::ModelConfig;
use crate::model::lora::AdapterLayout;

/// Largest head size that the kernels support.
const MAX_HEAD_DIM: usize = 256;

/// Frozen weights on a CUDA device, and the copies of the adapter that the products read.
#[derive(Debug)]
pub(super) struct DeviceWeights {
    pub(super) device: Arc<CudaDevice>,
    pub(super) config: ModelConfig,
    pub(super) adapter: AdapterLayout,
    pub(super) element: ElementType,
    pub(super) layout: FrozenLayout,
    pub(super) frozen: DeviceBuffer,
    /// Checksum of the frozen weights at upload.
    pub(super) expected_checksum: u64,
    /// Cosines, then sines, for the rotary position embedding.
    pub(super) rope: DeviceBuffer,
    pub(super) max_positions: usize,
    pub(super) copy_table: DeviceBuffer,
}

impl DeviceWeights {
    /// Uploads the base model. Samples may have at most `max_tokens` tokens.
    ///
    /// # Errors
    ///
    /// Returns the driver's error, or an error if the head size is not supported.
    pub(super) fn new(
        device: Arc<CudaDevice>,
        base: &BaseModel,
        adapter: &AdapterLayout,
        precision: Precision,
        max_tokens: usize,
    ) -> Result<DeviceWeights, DeviceError> {
        let config = base.config.clone();
        if config.head_dim > MAX_HEAD_DIM {
            let detail =
                format!("a head size of {}; the largest supported is {MAX_HEAD_DIM}", config.head_dim);
            return Err(DeviceError::CallFailed {
                device: device.name(),
                call: "attention",
                detail,
                code: None,
            });
        }
        let element = match precision {
            Precision::F32 => ElementType::F32,
            Precision::Bf16 => ElementType::Bf16,
        };
        let layout = FrozenLayout::new(&config, adapter);
        let frozen = device.buffer(element, layout.len())?;
        let expected_checksum = layout.upload(&device, &frozen, base)?;
        let max_positions = max_tokens.max(1);
        let rope = upload_floats(&device, &rope_table(&config, max_positions))?;
        let table_bytes = layout.copy_table(adapter, &frozen);
        let copy_table = device.buffer(ElementType::Bits64, table_bytes.len() / 8)?;
        device.upload(&copy_table, 0, &table_bytes)?;
        let adapter = adapter.clone();
        Ok(DeviceWeights {
            device,
            config,
            adapter,
            element,
            layout,
            frozen,
            expected_checksum,
            rope,
            max_positions,
            copy_table,
        })
    }

    /// Refreshes the copies of the adapter from `params`, so that work queued later uses these parameters.
    ///
    /// # Errors
    ///
    /// Returns the driver's error.
    pub(super) fn refresh_adapter_copies(&self, params: BufferView<'_>) -> Result<(), DeviceError> {
        self.device.copy_adapter_blocks(
            self.element,
            self.copy_table.view(),
            params,
            self.copy_table.len() / 4,
        )
    }

    /// Returns whether the frozen weights are unchanged since the upload, and whether the copies of the
    /// adapter match `params`. Blocks until the result is complete.
    ///
    /// The copies are between the weights. They are set to zero for the checksum of the weights, and then
    /// restored. A checksum over everything before and after must be the same.
    ///
    /// # Errors
    ///
    /// Returns the driver's error. The copies may then be zero.
    pub(super) fn are_intact(&self, params: BufferView<'_>) -> Result<bool, DeviceError> {
        let device = &self.device;
        let sums = device.zeros(ElementType::Bits64, 3)?;
        let zeros = device.zeros(ElementType::F32, self.adapter.param_count())?;
        let word_count = (self.frozen.len() * self.element.size_bytes() / 4) as u64;
        let queue_checksum =
            |index| device.checksum(sums.view_from(index), self.frozen.view(), word_count, 0);
        queue_checksum(0)?;
        self.refresh_adapter_copies(zeros.view())?;
        queue_checksum(1)?;
        self.refresh_adapter_copies(params)?;
        queue_checksum(2)?;
        let sums = device.download(&sums)?;
        let sums: Vec<u64> = sums.as_chunks::<8>().0.iter().map(|bytes| u64::from_ne_bytes(*bytes)).collect();
        Ok(sums[1] == self.expected_checksum && sums[0] == sums[2])
    }

    /// Uploads the base model again. The caller must then refresh the copies of the adapter.
    ///
    /// # Errors
    ///
    /// Returns the driver's error.
    pub(super) fn reload(&self, base: &BaseModel) -> Result<(), DeviceError> {
        self.layout.upload(&self.device, &self.frozen, base)?;
        Ok(())
    }

    /// A range of the frozen weights.
    pub(super) fn weight_view(&self, offset: usize, len: usize) -> BufferView<'_> {
        self.frozen.view_range(offset, len)
    }
}

/// Cosines and sines `[2, positions, head_dim / 2]`, by the same formula as on the CPU.
fn rope_table(config: &ModelConfig, positions: usize) -> Vec<f32> {
    let half = config.head_dim / 2;
    let angle = |index: usize| {
        let frequency = config.rope_theta.powf(-2.0 * (index % half) as f32 / config.head_dim as f32);
        (index / half) as f32 * frequency
    };
    let indices = 0..positions * half;
    indices.clone().map(|index| angle(index).cos()).chain(indices.map(|index| angle(index).sin())).collect()
}

pub(super) fn upload_floats(device: &CudaDevice, values: &[f32]) -> Result<DeviceBuffer, DeviceError> {
    let buffer = device.buffer(ElementType::F32, values.len())?;
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_ne_bytes()).collect();
    device.upload(&buffer, 0, &bytes)?;
    Ok(buffer)
}
