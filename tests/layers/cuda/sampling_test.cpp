// The GPU's tokens and log-probabilities are those of runtime/sampler.h, exactly.
#include "layers/cuda/sampling.h"

#include "runtime/sampler.h"
#include "tests/support/cuda_matrix.h"

namespace ferry {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Query {
    SamplingParams params;
    int64_t sample = 0;
    std::vector<int32_t> tokens = {3, 1, 4, 1, 5, 9, 2, 6};
    int64_t num_prompt_tokens = 5;
    std::vector<int32_t> banned = {};
};

SampleRow to_cuda(const Query& query, int64_t row) {
    const SamplingParams& params = query.params;
    return {.row = row,
            .temperature = params.temperature,
            .top_p = params.top_p,
            .min_p = params.min_p,
            .repetition_penalty = params.repetition_penalty,
            .top_k = params.top_k,
            .seed = params.seed,
            .id_hash = hash_request_id("a request"),
            .sample = query.sample,
            .tokens = query.tokens,
            .num_prompt_tokens = query.num_prompt_tokens,
            .banned = query.banned,
            .num_top = params.logprobs.value_or(-1)};
}

// All queries on every row of logits, in calls of one query per row.
void expect_the_tokens_of_the_cpu(const Matrix& logits, const std::vector<Query>& queries) {
    const int64_t rows = logits.view.rows(), vocab = logits.view.dim(1);
    Sampler cpu(vocab);
    CudaSampler cuda(cuda_device(0), vocab, rows);
    const CudaTensor device_logits(logits);
    for (const Query& query : queries) {
        std::vector<SampleRow> inputs;
        for (int64_t row = rows; row-- > 0;) inputs.push_back(to_cuda(query, row));
        const auto sampled = cuda.sample(device_logits, inputs);
        ASSERT_EQ(sampled.size(), inputs.size());
        for (size_t i = 0; i < inputs.size(); ++i) {
            const SampledToken expected = cpu.sample(
                {.logits = {logits.view.row<float>(inputs[i].row), static_cast<size_t>(vocab)},
                 .params = query.params,
                 .id_hash = inputs[i].id_hash,
                 .sample = query.sample,
                 .tokens = query.tokens,
                 .num_prompt_tokens = query.num_prompt_tokens,
                 .banned = query.banned});
            SCOPED_TRACE(fmt::format("row {} of {}: temperature {}, top_k {}, top_p {}, min_p {}",
                                     inputs[i].row, vocab, query.params.temperature,
                                     query.params.top_k, query.params.top_p, query.params.min_p));
            EXPECT_EQ(sampled[i].token, expected.token);
            if (!query.params.logprobs || expected.token < 0) continue;
            EXPECT_EQ(sampled[i].logprob, expected.logprob);
            ASSERT_EQ(sampled[i].top.size(), expected.top.size());
            for (size_t j = 0; j < expected.top.size(); ++j) {
                EXPECT_EQ(sampled[i].top[j].token, expected.top[j].token);
                EXPECT_EQ(sampled[i].top[j].logprob, expected.top[j].logprob);
            }
        }
    }
}

std::vector<Query> filters(uint64_t seed) {
    std::vector<Query> queries;
    for (double temperature : {0.0, 0.3, 1.0, 5.0})
        for (int64_t top_k : {0, 1, 7, 40, 100000})
            for (double top_p : {1.0, 0.9, 0.3, 0.0})
                for (double min_p : {0.0, 0.1}) {
                    Query query;
                    query.params = {.temperature = temperature,
                                    .top_k = top_k,
                                    .top_p = top_p,
                                    .min_p = min_p,
                                    .seed = seed + queries.size()};
                    query.sample = static_cast<int64_t>(queries.size() % 3);
                    queries.push_back(query);
                }
    return queries;
}

TEST(CudaSampling, EveryFilter) {
    Matrix logits(3, 1000, 5);
    for (float& value : logits.values) value *= 3;
    expect_the_tokens_of_the_cpu(logits, filters(100));
}

TEST(CudaSampling, VocabulariesOfEverySize) {
    for (int64_t vocab : {1, 2, 31, 512, 513, 2049}) {
        Matrix logits(2, vocab, static_cast<uint64_t>(vocab));
        std::vector<Query> queries(3);
        queries[1].params = {.temperature = 1, .seed = 3};
        queries[2].params = {.temperature = 0.8, .top_k = 20, .top_p = 0.8, .seed = 4};
        for (Query& query : queries) query.params.logprobs = 3;
        expect_the_tokens_of_the_cpu(logits, queries);
    }
}

// Whole ranges of equal logits, so that filters cut within ties; and both zeros.
TEST(CudaSampling, TiesGoToTheLowerId) {
    Matrix logits(4, 700, 9);
    for (float& value : logits.values) value = std::round(value) * 0.5f;
    for (int64_t i = 0; i < 700; i += 2) {
        logits.view.row<float>(2)[i] = -0.0f;
        logits.view.row<float>(3)[i] = 1;
    }
    expect_the_tokens_of_the_cpu(logits, filters(200));
}

TEST(CudaSampling, PenaltiesAndBans) {
    Matrix logits(2, 600, 11);
    std::vector<Query> queries;
    for (double penalty : {1.0, 1.3, 0.7})
        for (const std::vector<int32_t>& banned :
             {std::vector<int32_t>{}, {0, 4, 599}, {-1, 600, 3}})
            for (double temperature : {0.0, 1.0}) {
                Query query;
                query.params = {.temperature = temperature,
                                .top_p = 0.95,
                                .repetition_penalty = penalty,
                                .seed = 77,
                                .logprobs = 5};
                for (int32_t id = 0; id < 500; ++id) query.tokens.push_back(id % 400);
                query.tokens.push_back(-5);
                query.tokens.push_back(10000);
                query.banned = banned;
                queries.push_back(query);
            }
    expect_the_tokens_of_the_cpu(logits, queries);
}

TEST(CudaSampling, ExtremeLogits) {
    Matrix logits(6, 300, 13);
    logits.view.row<float>(0)[17] = std::nanf("");
    logits.view.row<float>(1)[299] = kInfinity;
    std::fill_n(logits.view.row<float>(2), 300, -kInfinity);
    std::fill_n(logits.view.row<float>(3), 299, -kInfinity);
    for (int64_t i = 0; i < 300; ++i) {
        logits.view.row<float>(4)[i] *= 1e30f;
        logits.view.row<float>(5)[i] = i % 3 == 0 ? -kInfinity : logits.view.row<float>(5)[i];
    }
    std::vector<Query> queries(3);
    queries[1].params = {.temperature = 1, .seed = 1};
    queries[2].params = {.temperature = 2, .top_k = 250, .top_p = 0.99, .min_p = 1e-3, .seed = 1};
    for (Query& query : queries) query.params.logprobs = 2;
    expect_the_tokens_of_the_cpu(logits, queries);
    queries[0].banned.resize(300);
    for (int32_t id = 0; id < 300; ++id) queries[0].banned[static_cast<size_t>(id)] = id;
    expect_the_tokens_of_the_cpu(logits, {queries[0]});
}

TEST(CudaSampling, AllOfAVocabularyAsTop) {
    const Matrix logits(1, 40, 15);
    Query query;
    query.params.logprobs = 50;
    expect_the_tokens_of_the_cpu(logits, {query});
}

TEST(CudaSampling, NoRows) {
    CudaSampler sampler(cuda_device(0), 10, 4);
    EXPECT_TRUE(sampler.sample(CudaTensor(DType::f32, {1, 10}), {}).empty());
}

}  // namespace
}  // namespace ferry
