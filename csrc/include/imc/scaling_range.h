// The range of scores over epsilon up to which Sinkhorn-Knopp runs on scaling factors in float32; with more, on logarithms.
#pragma once

namespace imc {

// In bits. The papers' scores are cosines and their epsilon 0.05: 2 / (0.05 ln 2) = 57.71, and 58.16 where bfloat16 has
// rounded the cosines to 1 + 2^-7.
//
// Why it is narrow enough. For E in 2^[-r/2, r/2], shares m_k of the mass, v_k = m_k / mean_b(u_b E_bk) and
// u_b = 1 / sum_k(E_bk v_k), from u = 1 on: as means of entries of E, all u_b lie within a factor 2^r of each other, and
// so do all v_k / m_k. An iteration divides u, and v, by sums whose mean, by rows, or weighted by m, is 1: by Jensen's
// inequality the mean of log u never falls, from 0, nor that of log(v / m), weighted by m, from -r/2 or more. Hence
//   u in 2^[-r, r],  v / m in 2^[-3r/2, r/2],  row sums 1 / u in 2^[-r, r],  column means m / v in 2^[-r/2, 3r/2],
// at r = 59 within 2^+-89: with 2^30 samples nothing overflows, and what is 2^-24 of a row's or of a column's sum is
// 2^-83 or more: a normal number. The cpu kernels take E from any of the scores: v and the columns move by up to 2^29.5.
constexpr float kScalingRange = 59.f;

}  // namespace imc
