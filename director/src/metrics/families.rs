//! Families of metrics that are made anew for each page, out of what members have reported.

use prometheus_client::encoding::{
    DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, MetricEncoder, NoLabelSet,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;
use std::fmt::Error;

/// Labels of one sample.
pub(super) type Labels = Vec<(&'static str, String)>;

/// What a family is called and means.
pub(super) struct About<'a> {
    /// Without unit and suffix.
    pub name: &'a str,
    /// A sentence without its full stop.
    pub help: &'a str,
    pub unit: Option<Unit>,
}

/// The name and meaning of a family without a unit.
pub(super) fn about<'a>(name: &'a str, help: &'a str) -> About<'a> {
    About { name, help, unit: None }
}

impl About<'_> {
    /// With its unit.
    pub fn in_unit(self, unit: Unit) -> Self {
        Self { unit: Some(unit), ..self }
    }
}

/// One sample of a histogram.
pub(super) struct Durations {
    pub sum_s: f64,
    /// By upper bound, s; [`f64::MAX`] stands for none. Not summed up.
    pub buckets: Vec<(f64, u64)>,
}

/// Where the families go.
pub(super) struct Families<'a>(pub DescriptorEncoder<'a>);

impl Families<'_> {
    /// What may rise and fall.
    pub fn gauges<V: EncodeGaugeValue>(
        &mut self,
        about: About<'_>,
        samples: impl IntoIterator<Item = (Labels, V)>,
    ) -> Result<(), Error> {
        self.family(about, MetricType::Gauge, samples, |encoder, value| encoder.encode_gauge(value))
    }

    /// What only rises while its member lives.
    pub fn counters<V: EncodeCounterValue>(
        &mut self,
        about: About<'_>,
        samples: impl IntoIterator<Item = (Labels, V)>,
    ) -> Result<(), Error> {
        self.family(about, MetricType::Counter, samples, |encoder, value| {
            encoder.encode_counter::<NoLabelSet, _, f64>(value, None)
        })
    }

    /// What does not change, as labels of a constant.
    pub fn info(&mut self, about: About<'_>, labels: &[(&str, &str)]) -> Result<(), Error> {
        let help = format!("{}.", about.help);
        self.0.encode_descriptor(about.name, &help, None, MetricType::Info)?.encode_info(&labels)
    }

    /// Durations.
    pub fn durations(
        &mut self,
        about: About<'_>,
        samples: impl IntoIterator<Item = (Labels, Durations)>,
    ) -> Result<(), Error> {
        let about = about.in_unit(Unit::Seconds);
        self.family(about, MetricType::Histogram, samples, |encoder, durations| {
            let count = durations.buckets.iter().map(|(_, count)| count).sum();
            encoder.encode_histogram::<NoLabelSet>(durations.sum_s, count, &durations.buckets, None)
        })
    }

    fn family<V>(
        &mut self,
        about: About<'_>,
        kind: MetricType,
        samples: impl IntoIterator<Item = (Labels, V)>,
        encode: impl Fn(&mut MetricEncoder<'_>, &V) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let About { name, help, unit } = about;
        // As the registry does it for its own.
        let help = format!("{help}.");
        let mut family = self.0.encode_descriptor(name, &help, unit.as_ref(), kind)?;
        for (labels, value) in samples {
            match labels.is_empty() {
                true => encode(&mut family, &value)?,
                false => encode(&mut family.encode_family(&labels)?, &value)?,
            }
        }
        Ok(())
    }
}
