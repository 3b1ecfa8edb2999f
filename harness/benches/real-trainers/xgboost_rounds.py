# XGBoost: TrainingCheckPoint each 2 rounds, resumed from the newest file.
import hashlib, os, sys

import numpy
import xgboost

directory = sys.argv[1]
random = numpy.random.default_rng(7)
data = xgboost.DMatrix(random.normal(size=(64, 4)), random.normal(size=64))
kept = sorted(os.listdir(directory), key=lambda name: int(name.split("_")[1].split(".")[0]))
newest = os.path.join(directory, kept[-1]) if kept else None
done = 0
if newest:
    booster = xgboost.Booster(model_file=newest)
    done = booster.num_boosted_rounds()
saver = xgboost.callback.TrainingCheckPoint(directory=directory, name="m", interval=2)
booster = xgboost.train(
    {"max_depth": 2, "nthread": 1, "seed": 7}, data, max(8 - done, 0), xgb_model=newest, callbacks=[saver]
)
print("model", hashlib.sha256(booster.save_raw("ubj")).hexdigest()[:16])
