"""Which types of PEFT are there a translator for?"""

from __future__ import annotations

from collections.abc import Mapping

from adapters.checkpoint.peft.adalora import AdaLoRATranslator
from adapters.checkpoint.peft.ia3 import IA3Translator
from adapters.checkpoint.peft.lora import LoRATranslator
from adapters.checkpoint.peft.norms import LNTuningTranslator
from adapters.checkpoint.peft.oft import OFTTranslator
from adapters.checkpoint.peft.products import LoHaTranslator, LoKrTranslator
from adapters.checkpoint.peft.random_bases import RandLoRATranslator, VBLoRATranslator, VeRATranslator
from adapters.checkpoint.peft.tokens import TrainableTokensTranslator
from adapters.checkpoint.peft.translator import Translator

TRANSLATORS: Mapping[str, Translator] = {
    translator.peft_type: translator
    for translator in (
        LoRATranslator(),
        IA3Translator(),
        LoHaTranslator(),
        LoKrTranslator(),
        OFTTranslator(),
        AdaLoRATranslator(),
        VeRATranslator(),
        RandLoRATranslator(),
        VBLoRATranslator(),
        LNTuningTranslator(),
        TrainableTokensTranslator(),
    )
}
"""Type of PEFT -> its translator, for types whose tensors stand at modules."""
