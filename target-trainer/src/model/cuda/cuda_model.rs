//! The model on a CUDA device: runs micro-batches, with the adapter's gradient summed in place. Knows no
//! optimizer.

use std::num::NonZeroUsize;
use std::sync::Arc;

use super::batch::{PackedBatch, WeightedSample};
use super::device_weights::{DeviceWeights, upload_floats};
use super::micro_batch_pass::MicroBatchPass;
use crate::device::cuda::{BufferView, CudaDevice, DeviceBuffer, ElementType};
use crate::device::{DeviceError, Precision};
use crate::model::base::BaseModel;
use crate::model::lora::AdapterLayout;
use crate::model::loss_and_gradient::LossAndGradient;

/// A model on a CUDA device.
#[derive(Debug)]
pub struct CudaModel {
    weights: DeviceWeights,
}

impl CudaModel {
    /// Uploads the base model. Samples may have at most `max_tokens` tokens.
    ///
    /// # Errors
    ///
    /// Returns the driver's error, or an error if the head size is not supported.
    pub fn new(
        device: Arc<CudaDevice>,
        base: &BaseModel,
        adapter: &AdapterLayout,
        precision: Precision,
        max_tokens: usize,
    ) -> Result<CudaModel, DeviceError> {
        Ok(CudaModel { weights: DeviceWeights::new(device, base, adapter, precision, max_tokens)? })
    }

    /// Refreshes the copies of the adapter from `params`, so that work queued later uses these parameters.
    ///
    /// # Errors
    ///
    /// Returns the driver's error.
    pub fn refresh_adapter_copies(&self, params: BufferView<'_>) -> Result<(), DeviceError> {
        self.weights.refresh_adapter_copies(params)
    }

    /// Queues a forward and backward pass: adds the batch's gradient to `gradient` and its weighted sum of
    /// losses to `loss`, one f32. `words` must hold [`PackedBatch::words`].
    ///
    /// # Errors
    ///
    /// Returns the driver's error.
    pub fn forward_backward(
        &self,
        batch: &PackedBatch,
        words: &DeviceBuffer,
        gradient: &DeviceBuffer,
        loss: BufferView<'_>,
    ) -> Result<(), DeviceError> {
        for micro_batch in &batch.micro_batches {
            MicroBatchPass {
                weights: &self.weights,
                micro_batch: *micro_batch,
                inputs: micro_batch.inputs(words),
                gradient,
            }
            .run(loss)?;
        }
        Ok(())
    }

    /// Computes samples as one micro-batch with the given parameters. Blocks until the result is complete.
    ///
    /// Returns the weighted sum of losses, and `scale` times its gradient. Afterwards the copies of the
    /// adapter are those of `params`.
    ///
    /// # Errors
    ///
    /// Returns the driver's error.
    pub fn forward_backward_once(
        &self,
        params: &[f32],
        samples: &[WeightedSample<'_>],
        scale: f32,
    ) -> Result<LossAndGradient, DeviceError> {
        let all = NonZeroUsize::new(samples.len()).unwrap_or(NonZeroUsize::MIN);
        let batch = PackedBatch::new(samples.iter().copied(), all, scale);
        let DeviceWeights { device, adapter, .. } = &self.weights;
        let words = device.buffer(ElementType::Bits32, batch.words().len().max(1))?;
        let bytes: Vec<u8> = batch.words().iter().flat_map(|word| word.to_ne_bytes()).collect();
        device.upload(&words, 0, &bytes)?;
        let params = upload_floats(device, params)?;
        self.refresh_adapter_copies(params.view())?;
        let gradient = device.zeros(ElementType::F32, adapter.param_count())?;
        let loss = device.zeros(ElementType::F32, 1)?;
        self.forward_backward(&batch, &words, &gradient, loss.view())?;
        let loss = floats(&device.download(&loss)?)[0];
        Ok(LossAndGradient { loss, gradient: floats(&device.download(&gradient)?) })
    }

    /// Returns whether the frozen weights are unchanged since the upload, and whether the copies of the
    /// adapter match `params`. Blocks until the result is complete.
    ///
    /// # Errors
    ///
    /// Returns the driver's error. The copies may then be zero.
    pub fn weights_intact(&self, params: BufferView<'_>) -> Result<bool, DeviceError> {
        self.weights.are_intact(params)
    }

    /// Uploads the base model again. The caller must then refresh the copies of the adapter.
    ///
    /// # Errors
    ///
    /// Returns the driver's error.
    pub fn reload_weights(&self, base: &BaseModel) -> Result<(), DeviceError> {
        self.weights.reload(base)
    }
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_ne_bytes(*bytes)).collect()
}
