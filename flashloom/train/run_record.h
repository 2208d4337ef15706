#pragma once

#include <optional>
#include <span>
#include <string>

#include "flashloom/io/metric_log.h"
#include "flashloom/text/packed_batches.h"
#include "flashloom/text/token_documents.h"

namespace flashloom {

/// What a run is, in `OUTPUT/run.json`: the settings that decide its weights, and how its steps are
/// cut into micro-batches. Memory decides the latter once, when the run starts; that it stays is
/// what makes a resumed run equal bit for bit.
struct RunRecord {
  std::span<const Metric> settings;
  StepShape shape;
};

void write_run_record(const std::string& output, const RunRecord& record);

/// How the run in `output` cuts its steps; none if there is no run. Throws IoError.
std::optional<StepShape> recorded_shape(const std::string& output);

/// Throws Error naming each setting that differs from those of the run in `output`.
void require_same_settings(const std::string& output, std::span<const Metric> settings);

/// Checksum of all tokens and loss marks, for the settings.
std::string documents_checksum(const TokenDocuments& documents);

}  // namespace flashloom
