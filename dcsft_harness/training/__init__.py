"""curated set -> adapter: cold start and SFT through TRL's SFTTrainer and PEFT.

    from dcsft_harness.training.config import SftConfig
    from dcsft_harness.training.sft import train_sft
    train_sft(Path("cold"), Path("curated"), Path("adapter"), SftConfig(max_steps=100))

`config`, `launching` and `stage` import neither torch nor TRL, so that the command line loads quickly. The
modules that train import both; they are imported when training starts.
"""
