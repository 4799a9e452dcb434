"""The public names, for type checkers and editors: the module itself imports each when it is first used."""

from embedprior.api import StudyRun as StudyRun
from embedprior.api import run_study as run_study
from embedprior.cache.embedding import embed as embed
from embedprior.cache.reader import EmbeddingCache as EmbeddingCache
from embedprior.cache.reader import open_cache as open_cache
from embedprior.deploy.predict import Bundle as Bundle
from embedprior.deploy.predict import load_bundle as load_bundle
from embedprior.encoders.registry import create_encoder as create_encoder
from embedprior.encoders.registry import list_encoders as list_encoders
from embedprior.evidence.results import AucComparison as AucComparison
from embedprior.evidence.results import Evaluation as Evaluation
from embedprior.evidence.results import delong_test as delong_test
from embedprior.evidence.results import evaluate as evaluate
from embedprior.imaging.drr.render import render_drr as render_drr
from embedprior.imaging.radiographs import Radiograph as Radiograph
from embedprior.imaging.radiographs import read_radiograph as read_radiograph
from embedprior.imaging.readers import read_volume as read_volume
from embedprior.imaging.volume import Volume as Volume
from embedprior.prior.estimator import DiffusionPrior as DiffusionPrior
from embedprior.students.storage import FittedMethod as FittedMethod
from embedprior.students.storage import load_fitted as load_fitted

__version__: str

def __dir__() -> list[str]: ...
