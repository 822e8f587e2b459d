"""Truths taken apart, and reports on truths whose covariates are any weighted points."""

from moe_prompt.models.covariates import Covariates, Uniform
from moe_prompt.models.regression import RegressionModel
from moe_prompt.models.sampling import Population
from moe_prompt.theory.report import FamilyReport, identifiability_report


def truth_parts(truth: Population) -> tuple:
    """Model, parameters and covariates."""
    return truth.model, truth.theta, truth.covariates


def described(model: RegressionModel, theta, covariates) -> FamilyReport:
    """The report of a truth under a distribution, or under points with weights."""
    if isinstance(covariates, Covariates):
        return identifiability_report(Population(model, theta, covariates, 1.0))
    anywhere = Uniform(-2.0, 2.0, len(model.key_map))
    return identifiability_report(Population(model, theta, anywhere, 1.0), nodes=covariates)
