// The formulas of the objective for one response, shared by every native implementation.
#pragma once

#include <cmath>

#ifdef __CUDACC__
#define POPE_HOST_DEVICE __host__ __device__
#else
#define POPE_HOST_DEVICE
#endif

namespace pope {

// With no clip, a log-weight above this is a mistake in the inputs (pope_kernels.values.MAX_LOG_WEIGHT).
constexpr double kMaxLogWeight = 80.0;
// The largest double; an infinite option means that it is off.
constexpr double kLargest = 1.79769313486231570815e308;

enum class Weighting : int { response = 0, slate = 1, geometric = 2 };
enum class Normalization : int { none = 0, slate = 1, batch = 2 };
enum class UtilityForm : int { feedback = 0, log_likelihood = 1 };
enum class DiversityForm : int { neg_log_prob = 0, entropy = 1 };

// Whether a code that came from Python is a value that the formulas here know. The compiler reports a value without a
// case, here and in the formulas (-Werror=switch).
constexpr bool is_known(Weighting value) {
    switch (value) {
        case Weighting::response:
        case Weighting::slate:
        case Weighting::geometric: return true;
    }
    return false;
}
constexpr bool is_known(Normalization value) {
    switch (value) {
        case Normalization::none:
        case Normalization::slate:
        case Normalization::batch: return true;
    }
    return false;
}
constexpr bool is_known(UtilityForm value) {
    switch (value) {
        case UtilityForm::feedback:
        case UtilityForm::log_likelihood: return true;
    }
    return false;
}
constexpr bool is_known(DiversityForm value) {
    switch (value) {
        case DiversityForm::neg_log_prob:
        case DiversityForm::entropy: return true;
    }
    return false;
}

struct ObjectiveOptions {
    double diversity_weight;
    Weighting weighting;
    Normalization normalization;
    double log_clip;  // +inf without a clip
    UtilityForm utility_form;
    DiversityForm diversity_form;
    double num_slates;
};

// The unified reward R = utility + diversity_weight * diversity of a response, and dR/dl.
struct Reward {
    double utility;
    double diversity;
    double total;
    double slope;
};

POPE_HOST_DEVICE inline Reward reward(double logprob, double feedback, const ObjectiveOptions& options) {
    const bool by_likelihood = options.utility_form == UtilityForm::log_likelihood;
    const double utility = by_likelihood ? feedback * logprob : feedback;
    const double utility_slope = by_likelihood ? feedback : 0.0;
    double diversity = -logprob;
    double diversity_slope = -1.0;
    if (options.diversity_form == DiversityForm::entropy) {
        const double probability = exp(logprob);
        diversity = -probability * logprob;
        diversity_slope = -probability * (logprob + 1.0);
    }
    const double alpha = options.diversity_weight;
    return {utility, diversity, utility + alpha * diversity, utility_slope + alpha * diversity_slope};
}

// The raw log-weight of a response, from its own log-ratio and its slate's sum of log-ratios.
POPE_HOST_DEVICE inline double raw_log_weight(double log_ratio, double slate_log_ratio, double k, Weighting weighting) {
    switch (weighting) {
        case Weighting::response: return log_ratio;
        case Weighting::slate: return slate_log_ratio;
        case Weighting::geometric: return slate_log_ratio / k;
    }
    return static_cast<double>(NAN);
}

}  // namespace pope
