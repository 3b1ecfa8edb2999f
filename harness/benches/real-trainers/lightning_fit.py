# Lightning: ModelCheckpoint with save_last, resumed from `last.ckpt`.
import hashlib, os, sys, warnings

warnings.filterwarnings("ignore")
import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

directory = sys.argv[1]


class Line(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.line = torch.nn.Linear(8, 1)

    def training_step(self, batch, index):
        return self.line(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters())


lightning.seed_everything(7, verbose=False)
data = torch.utils.data.DataLoader(torch.randn(16, 8, generator=torch.Generator().manual_seed(7)), batch_size=4)
saver = ModelCheckpoint(directory, every_n_train_steps=2, save_last=True, save_top_k=1)
trainer = lightning.Trainer(
    max_steps=8, callbacks=[saver], logger=False, enable_progress_bar=False, enable_model_summary=False,
    accelerator="cpu", default_root_dir=directory,
)
model = Line()
last = os.path.join(directory, "last.ckpt")
trainer.fit(model, data, ckpt_path=last if os.path.exists(last) else None)
weights = b"".join(value.detach().numpy().tobytes() for value in model.parameters())
print("weights", hashlib.sha256(weights).hexdigest()[:16])
