"""What `import pathovit` gives: read by the package itself, by editors and by type checkers."""

from .encoders import Encoder as Encoder
from .encoders import EncoderRecord as EncoderRecord
from .encoders import load_encoder as load_encoder
from .encoders import own_encoder as own_encoder
from .encoders import write_encoder as write_encoder
from .errors import PathovitError as PathovitError
from .errors import SettingsError as SettingsError
from .errors import SlideError as SlideError
from .model.aggregator import SlideTransformer as SlideTransformer
from .model.own_kinds import register_aggregator as register_aggregator
from .model.prediction import SlidePrediction as SlidePrediction
from .model.slide_model import SlideModel as SlideModel
from .model.slide_model import load_model as load_model
from .model.slide_model import save_model as save_model
from .outputs.features import SlideFeatures as SlideFeatures
from .outputs.features import TileVerdict as TileVerdict
from .outputs.folder import OutFolder as OutFolder
from .outputs.records import SlideRecord as SlideRecord
from .outputs.runs import RunRecord as RunRecord
from .outputs.store import FeatureStore as FeatureStore
from .run.embedder import Embedder as Embedder
from .run.folder import run_folder as run_folder
from .run.single import analyse_slide as analyse_slide
from .settings import Settings as Settings
from .settings import TileSpec as TileSpec
from .settings import TissueSettings as TissueSettings
from .settings import fill_spec as fill_spec
from .settings import load_settings as load_settings
from .show.heatmap import Heatmap as Heatmap
from .show.results import load_features as load_features
from .show.results import load_heatmap as load_heatmap
from .show.results import load_results as load_results
from .slides.levels import Level as Level
from .slides.slide import Slide as Slide
from .slides.slide import open_slide as open_slide
from .slides.tiling import TileGrid as TileGrid
from .slides.tiling import lay_grid as lay_grid
from .slides.tiling import read_tile as read_tile
from .slides.tissue import TissueMask as TissueMask
from .slides.tissue import find_tissue as find_tissue
from .study.teach import teach as teach

RESEARCH_USE: str
__version__: str
