# EM of R's flexmix on data that em.py wrote: Rscript flexmix.R TASK FOLDER n d k replicates [iterations ...]
#
# TASK trace: the log-likelihood after every iteration, one line per replicate.
#      time:  CPU seconds of all replicates, one after the other: `equal`, that many iterations of each, nothing but
#             EM; `converged`, flexmix as its manual has it, until it stops by itself; then its log-likelihoods.
#
# An M-step of flexmix divides the residual sum of squares by n - rank, as a linear model does. That is not the
# likelihood's maximum, from which it ends p / n away in variance. `maximum` divides by the weights, as EM does.
# `without_refit` leaves out the fit and the Hessian of the gate with which flexmix ends.

suppressPackageStartupMessages(library(flexmix))
given <- commandArgs(TRUE)
task <- given[1]
folder <- given[2]
size <- as.integer(given[3:6])
names(size) <- c("n", "d", "k", "replicates")
iterations <- as.integer(given[-(1:6)])
TOLERANCE <- 1e-12
MOST <- 2000

load_matrix <- function(name, replicate, columns) {
  path <- file.path(folder, paste0(name, "_", replicate, ".bin"))
  matrix(readBin(path, "double", size["n"] * columns), size["n"])
}

load_data <- function(replicate) {
  frame <- data.frame(y = load_matrix("y", replicate, 1)[, 1])
  frame$x <- load_matrix("x", replicate, size["d"])
  frame
}

maximum <- function() {
  model <- FLXMRglm(y ~ x, family = "gaussian")
  model@fit <- function(x, y, w, component) {
    fit <- lm.wfit(x, y, w = w)
    sigma <- sqrt(sum(w * fit$residuals^2) / sum(w))
    model@defineComponent(para = list(coef = coef(fit), df = ncol(x) + 1, sigma = sigma))
  }
  model
}

without_refit <- function() {
  gate <- FLXPmultinom(~x)
  gate@refit <- function(x, y, w, ...) list(coefficients = matrix(0, ncol(y) - 1, ncol(x)))
  gate
}

em <- function(data, posterior, model, gate, most, tolerance) {
  control <- list(iter.max = most, tolerance = tolerance, minprior = 0)
  flexmix(y ~ x, data = data, k = size["k"], cluster = posterior, model = model, concomitant = gate, control = control)
}

equal <- function(r, most) em(data[[r]], posterior[[r]], maximum(), without_refit(), most, 0)
converged <- function(r) {
  em(data[[r]], posterior[[r]], FLXMRglm(y ~ x, family = "gaussian"), FLXPmultinom(~x), MOST, TOLERANCE)
}

trace_of <- function(r) {
  values <- c()
  current <- posterior[[r]]
  repeat {  # every iteration starts its gate anew, so that a chain of single ones is the fit
    fit <- em(data[[r]], current, maximum(), without_refit(), 1, 0)
    current <- fit@posterior$scaled
    values <- c(values, fit@logLik)
    last <- tail(values, 2)
    if (length(values) >= MOST || length(last) == 2 && abs(diff(last)) < TOLERANCE * abs(last[2])) break
  }
  values
}

cpu_seconds <- function(work) {
  gc()
  began <- proc.time()
  result <- lapply(seq_len(size["replicates"]), work)
  list(seconds = sum((proc.time() - began)[c("user.self", "sys.self")]), result = result)
}

say <- function(name, values) cat(name, sprintf("%.17g", values), "\n")

data <- lapply(seq_len(size["replicates"]), load_data)
posterior <- lapply(seq_len(size["replicates"]), load_matrix, name = "posterior", columns = size["k"])
if (task == "trace") {
  for (r in seq_len(size["replicates"])) say("trace", trace_of(r))
} else {
  for (warm in 1:2) equal(1, 2)
  say("equal", cpu_seconds(function(r) equal(r, iterations[r]))$seconds)
  fits <- cpu_seconds(converged)
  say("converged", fits$seconds)
  say("steps", sapply(fits$result, function(fit) fit@iter))
  say("objective", sapply(fits$result, function(fit) fit@logLik))
}
